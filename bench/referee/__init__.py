"""Re-verifies candidates on a fresh copy of the model."""
