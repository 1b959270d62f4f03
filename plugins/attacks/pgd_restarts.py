"""PGD from many random starts: the worst of them counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.plugin import Attack, hookimpl
from plugins.attacks.pgd import PGD


@dataclass(frozen=True)
class PGDRestarts(PGD):
    """max over r < R of PGD from x_0^r, each x_0^r uniform in the ball (arXiv:1706.06083).

    Starts are keyed by their number, so fewer of them are the first of more: robust accuracy cannot
    rise with R. A row that one of them breaks begins no other.
    """

    name = "pgd-restarts"
    summary = "Projected gradient ascent on the cross-entropy from twenty random starts."

    restarts: int = 20


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Twenty starts of forty steps."""
    yield PGDRestarts()
