"""The dock Workbench: data, references, prior, reconstruction."""
