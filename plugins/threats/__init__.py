"""Built-in threats."""
