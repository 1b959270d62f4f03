"""PGD on the mean gradient over many draws of a random defense: EOT (arXiv:1707.07397)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.plugin import Attack, hookimpl
from plugins.attacks.pgd import PGD


@dataclass(frozen=True)
class ExpectationPGD(PGD):
    """PGD on the mean of many gradients of a random defense: EOT (arXiv:1707.07397).

    The error of the mean falls with the square root of the number of draws. For a deterministic
    defense it is PGD with other random starts, at the cost of PGD.
    """

    name = "pgd-eot"
    cite = "arXiv:1707.07397"
    summary = "Projected gradient ascent on the mean gradient over 32 draws of a random defense."

    eot_draws: int = 32
    """Draws over which each gradient is averaged."""


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with the steps and the step size of PGD."""
    yield ExpectationPGD()
