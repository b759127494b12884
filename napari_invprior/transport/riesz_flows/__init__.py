"""Wasserstein gradient flows of Riesz kernels: by particles and by networks."""
