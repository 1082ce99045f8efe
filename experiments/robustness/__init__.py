"""Checks that try to break things: files, processes, transformations."""
