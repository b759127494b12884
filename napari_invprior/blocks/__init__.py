"""Volumes beyond memory and beyond one machine, block by block."""
