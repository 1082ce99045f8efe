"""Data sets and their splits, from local files or installed packages."""
