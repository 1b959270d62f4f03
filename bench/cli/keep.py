"""`bench doctor`, `bench db`: whatever keeps the house in order."""

from __future__ import annotations

import typer


def enter(app: typer.Typer) -> None:
    """Offer these commands."""
