"""Isolation of submitted code in sandboxed worker processes."""
