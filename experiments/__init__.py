"""Studies: each is one command that can be killed and run again."""
