"""Storage: read audio, store headers, cache arrays, prefetch and download within a quota."""
