"""The dock Tessellation."""
