"""Meta-training: estimate gradients of theta and follow them."""
