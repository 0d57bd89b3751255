"""Training: the loop, its state and its checkpoints, and the files of a run."""
