"""Rankings, matrix, curves and gradient-masking checks, from the database alone; torch-free."""
