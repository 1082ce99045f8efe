"""Experiments: commands that compare, measure and test optimizers."""
