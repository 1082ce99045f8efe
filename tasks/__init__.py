"""Tasks, networks with data, for meta-training and evaluating optimizers."""
