"""Built-in threat models."""
