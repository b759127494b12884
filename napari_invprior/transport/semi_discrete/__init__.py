"""Optimal transport of a cloud to weighted sites."""
