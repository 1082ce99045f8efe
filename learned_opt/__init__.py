"""Learned optimizers as optax transformations, and what they are made of."""
