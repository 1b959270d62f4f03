"""Data sets by digest."""
