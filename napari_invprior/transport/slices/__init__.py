"""Directions and one-dimensional slices of clouds and images."""
