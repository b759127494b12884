"""Controls and plots that know nothing of images."""
