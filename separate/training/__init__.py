"""Training: the loop, the state that checkpoints hold, and the files of a run."""
