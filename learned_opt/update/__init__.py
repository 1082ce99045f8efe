"""How an update is computed from gradients and theta."""
