"""Compute updates from gradients and theta."""
