"""How meta-training is spread over devices and hosts."""
