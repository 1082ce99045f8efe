"""Meta-training: finding theta."""
