"""What a parameter is, and how it scales with width and depth."""
