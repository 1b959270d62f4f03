"""Isolation of submitted code in a worker process."""
