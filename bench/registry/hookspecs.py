"""What the harness asks every plugin, and the one thing it tells them.

A plugin is any module with a function named after a hook and marked `@hookimpl`:

    from bench.plugin import hookimpl

    @hookimpl
    def bench_attacks():
        yield MyAttack()

Each question is asked once, when the registry is filled; whatever is expensive (weights, devices,
files) waits until a cell is played.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from bench.core.cells import Cell
from bench.core.statistics import Count
from bench.plugin import (
    Attack,
    Certifier,
    Dataset,
    Defense,
    Diagnostic,
    ExternalAttack,
    MissingLibrary,
)
from bench.threats.threat_model import ThreatModel

hookspec = pluggy.HookspecMarker("bench")


@hookspec
def bench_datasets() -> Iterable[Dataset]:
    """Offer data sets. Asked first; images are read when a cell needs them."""
    return ()


@hookspec
def bench_threat_models() -> Iterable[ThreatModel]:
    """Declare rules of play. Asked second; attacks and defenses are matched against them."""
    return ()


@hookspec
def bench_attacks() -> Iterable[Attack | ExternalAttack | MissingLibrary]:
    """Offer attacks, parameters set. Building one touches no device."""
    return ()


@hookspec
def bench_defenses() -> Iterable[Defense]:
    """Offer defenses. Weights load later, inside `Defense.build`, one cell at a time."""
    return ()


@hookspec
def bench_certifiers() -> Iterable[Certifier]:
    """Offer proofs: which examples of a defense nobody can break."""
    return ()


@hookspec
def bench_diagnostics() -> Iterable[Diagnostic]:
    """Offer tests for masked gradients and for cheating, each with its evidence."""
    return ()


@hookspec
def bench_cell_judged(cell: Cell, robust: Count) -> None:
    """Hear that one attack has met one defense, after the verdict is stored."""
