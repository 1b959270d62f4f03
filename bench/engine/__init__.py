"""Runs attacks: batching, counted model access, success tracking, external attacks."""
