"""Gaussian mixtures of patches, of good ones alone or together with poor ones."""
