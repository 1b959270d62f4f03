"""Built-in diagnostics."""
