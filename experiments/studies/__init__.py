"""Studies of optimizers: commands that write tables and plots."""
