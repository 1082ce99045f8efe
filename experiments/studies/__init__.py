"""Studies: what optimizers do, as tables and plots."""
