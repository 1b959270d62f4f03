"""Training recipes, the training loop, and trained weights by digest."""
