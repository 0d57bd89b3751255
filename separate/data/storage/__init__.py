"""Storage: read audio, remember headers, cache arrays, prefetch and download within a quota."""
