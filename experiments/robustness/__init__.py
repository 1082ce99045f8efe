"""Robustness: the optax contract, hostile weight files, killed processes."""
