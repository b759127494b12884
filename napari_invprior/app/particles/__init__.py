"""The dock Particles."""
