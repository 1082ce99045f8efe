"""Studies of what is put around an optimizer: workers, and jumps."""
