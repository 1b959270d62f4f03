"""Perturbation sets as words: the built-in ones cross, for they are a name and a radius."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from bench.core.errors import PluginError
from bench.threats.norms import L1, L2, Linf, PerturbationSet

SETS = {kind.name: kind for kind in (Linf, L2, L1)}


def encode_set(ball: PerturbationSet, who: str) -> list[str]:
    """[name, radius]; PluginError for the set of a plugin, whose code is not behind the walls."""
    if SETS.get(ball.name) is not type(ball):
        raise PluginError(
            f"{who} is locked in, where only {', '.join(SETS)} are known; {ball.name} is a set of "
            "a plugin. --allow-unsandboxed plays it there."
        )
    return [ball.name, str(ball.eps)]


def decode_set(words: Any) -> PerturbationSet:
    """The set that words stand for."""
    name, radius = words
    return SETS[name](Fraction(radius))
