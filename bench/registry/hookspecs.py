"""The hooks that a plugin may implement.

A plugin is any module with a function named after a hook and marked `@hookimpl`:

    from bench.plugin import hookimpl

    @hookimpl
    def bench_attacks():
        yield MyAttack()

The hooks that register plugins are called once, when the registry is filled. Weights, devices and
files are first used when a cell is evaluated.
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
    """Register data sets. Called first; images are read when a cell needs them."""
    return ()


@hookspec
def bench_threat_models() -> Iterable[ThreatModel]:
    """Register threat models. Called second; attacks and defenses are matched against them."""
    return ()


@hookspec
def bench_attacks() -> Iterable[Attack | ExternalAttack | MissingLibrary]:
    """Register attacks with their parameters. Building one must not use a device."""
    return ()


@hookspec
def bench_defenses() -> Iterable[Defense]:
    """Register defenses. Weights are loaded later, in `Defense.build`, one cell at a time."""
    return ()


@hookspec
def bench_certifiers() -> Iterable[Certifier]:
    """Register certifiers, which prove examples robust."""
    return ()


@hookspec
def bench_diagnostics() -> Iterable[Diagnostic]:
    """Register diagnostics: tests for masked gradients and for cheating, with evidence."""
    return ()


@hookspec
def bench_cell_judged(cell: Cell, robust: Count) -> None:
    """Called after each evaluated cell, once its outcomes are stored.

    `robust` counts the examples that the attack did not break, of all examples of the cell.
    """
