"""Files in and out: images, OME-Zarr results, saved priors, provenance."""
