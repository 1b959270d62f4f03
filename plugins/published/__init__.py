"""Small trained networks whose weights and results come with the project."""
