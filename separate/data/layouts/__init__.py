"""Layouts: which files of a folder are the mixture and the sources of a track; one file each."""
