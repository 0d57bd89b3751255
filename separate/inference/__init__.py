"""Recordings to stem files."""
