"""The plugin through which Hydra finds the search of hyperparameters."""
