"""Priors that compare an image's patches with the references' by transport."""
