"""Diagnosis of an optimizer on the user's own network."""
