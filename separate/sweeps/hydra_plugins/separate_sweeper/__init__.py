"""Hydra's plugin for the search for hyperparameters."""
