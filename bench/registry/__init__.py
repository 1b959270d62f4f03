"""Finds, validates and lists plugins."""
