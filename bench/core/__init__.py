"""Torch-free records: cells, outcomes, errors, hashing, statistics."""
