"""Learned optimizers as optax transformations, and the parts they share."""
