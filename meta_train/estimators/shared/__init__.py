"""Code that several gradient estimators share."""
