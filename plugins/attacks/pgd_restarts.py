"""PGD with many random restarts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.plugin import Attack, hookimpl
from plugins.attacks.pgd import PGD


@dataclass(frozen=True)
class PGDRestarts(PGD):
    """The best of R runs of PGD, each from a uniform random point of the ball (arXiv:1706.06083).

    Starts are keyed by their number, so the starts of a smaller R are the first of a larger one,
    and robust accuracy cannot rise with R. A row that one restart breaks begins no other.
    """

    name = "pgd-restarts"
    summary = "Projected gradient ascent on the cross-entropy from twenty random starts."

    restarts: int = 20


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register PGD with twenty restarts of 40 steps."""
    yield PGDRestarts()
