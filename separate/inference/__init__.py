"""Inference: recordings to stem files."""
