"""Configurations of meta-training; each states its command and its result."""
