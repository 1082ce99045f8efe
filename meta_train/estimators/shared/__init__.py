"""What several gradient estimators share."""
