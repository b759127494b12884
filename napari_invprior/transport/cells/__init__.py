"""Cells of the source: which atom each source point goes to, by flow matching and by transport."""
