"""Doctor: checks, statistics and pictures of a data set."""
