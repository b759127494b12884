"""The energy distance by slices, and what flows down its gradient: particles, networks, images."""
