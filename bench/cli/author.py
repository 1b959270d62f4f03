"""`bench new`, `check`, `submit`: whatever a plugin's author needs."""

from __future__ import annotations

import typer


def enter(app: typer.Typer) -> None:
    """Offer these commands."""
