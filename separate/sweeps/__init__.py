"""Sweeps: the folder and the record of each job, search with pruning, and the table and picture of all jobs."""
