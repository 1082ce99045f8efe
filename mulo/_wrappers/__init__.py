"""Transformations around any optax optimizer, one per file."""
