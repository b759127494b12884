"""Fast sums of radial kernels, and the two-sample test that lives on them."""
