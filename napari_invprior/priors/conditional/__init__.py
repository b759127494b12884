"""Networks that draw images for given data."""
