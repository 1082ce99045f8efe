"""Code that several learned optimizers share."""
