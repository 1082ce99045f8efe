"""Meta-training spread over devices and hosts."""
