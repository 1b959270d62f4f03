"""Perturbation sets in frames: a built-in norm ball is its name and its radius."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from bench.core.errors import PluginError
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.sparse import L0

ENCODED_SETS = {kind.name: kind for kind in (Linf, L2, L1, L0)}


def encode_set(perturbation_set: PerturbationSet, title: str) -> list[str]:
    """[name, radius] of a built-in norm ball, for the attack named `title`.

    Raises PluginError for a plugin's set, because its code is not in the sandbox.
    """
    if ENCODED_SETS.get(perturbation_set.name) is not type(perturbation_set):
        raise PluginError(
            f"{title} runs in the sandbox, which supports the sets {', '.join(ENCODED_SETS)} "
            f"only; {perturbation_set.name} is a set of a plugin. --allow-unsandboxed runs the "
            "attack without the sandbox."
        )
    return [perturbation_set.name, str(perturbation_set.eps)]


def decode_set(encoded: Any) -> PerturbationSet:
    """The norm ball of a pair [name, radius]."""
    name, radius = encoded
    return ENCODED_SETS[name](Fraction(radius))
