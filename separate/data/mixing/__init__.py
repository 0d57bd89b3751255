"""Mixing: excerpts, augmentations, effects and loudness, from stored signals to a training batch."""
