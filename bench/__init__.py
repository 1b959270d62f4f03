"""Gauntlet: threat models, engine, referee, store, and functions for Python programs.

Nothing is loaded at import; the functions load torch when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.evaluation.api import evaluate
    from bench.evaluation.attack_run import attack
    from bench.submissions.import_checkpoint import load_model

__all__ = ["attack", "evaluate", "load_model"]


def __getattr__(name: str) -> Any:
    """A function of the Python interface. Raises AttributeError for any other name."""
    if name == "evaluate":
        from bench.evaluation.api import evaluate

        return evaluate
    if name == "attack":
        from bench.evaluation.attack_run import attack

        return attack
    if name == "load_model":
        from bench.submissions.import_checkpoint import load_model

        return load_model
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
