"""Configs of meta-training; the docstring of each has its command."""
