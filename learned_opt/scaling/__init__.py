"""Roles of parameters, and how parameters scale with width and depth."""
