"""Hostile submissions of our own, each with the result that it must have."""
