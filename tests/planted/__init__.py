"""Planted defenses and attacks: dishonest, broken and honest ones, played by `python -m`."""
