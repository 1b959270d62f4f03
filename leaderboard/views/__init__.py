"""Pages, one short script each."""
