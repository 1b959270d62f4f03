"""Registers every planted case as an installed plugin does."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Attack, Dataset, Defense, ExternalAttack, ThreatModel, hookimpl
from tests.planted import data
from tests.planted.cases import Case
from tests.planted.first import FIRST
from tests.planted.held_out import HELD_OUT
from tests.planted.networks import NETWORKS

CASES: tuple[Case, ...] = (*FIRST, *HELD_OUT)


@hookimpl
def bench_datasets() -> Iterator[Dataset]:
    """Register the data sets of two and of a hundred classes."""
    yield from data.DATASETS


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register a threat model for each of them."""
    yield from data.threat_models()


@hookimpl
def bench_attacks() -> Iterator[Attack | ExternalAttack]:
    """Register the broken attacks."""
    yield from (case.attack for case in CASES if case.attack is not None)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the networks and every case, each once."""
    found = (*NETWORKS, *(case.defense for case in CASES if case.defense is not None))
    yield from {defense.name: defense for defense in found}.values()
