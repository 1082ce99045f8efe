"""Data sets, from local files or installed packages."""
