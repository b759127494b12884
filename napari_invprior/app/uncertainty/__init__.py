"""The dock Uncertainty."""
