"""Examines attacks that are not built in before their first cell, once per digest and machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch

from bench.core.errors import PLUGIN_EXCEPTIONS, error_text
from bench.evaluation.events import Listener, RunNotice
from bench.evaluation.plan import PlannedPair
from bench.plugin import Attack, Evidence, Finding
from bench.registry.cards import attack_digest
from bench.registry.registry import Registry
from bench.results.attack_findings import ATTACK_OWNER, BATCH_CHECK
from bench.store import EvidenceRow, Store

AttackCheck: TypeAlias = Callable[[Registry, Attack], Evidence]
"""Whether the result of an attack for an image depends on the other images of its batch."""


def record_batch_findings(
    store: Store,
    registry: Registry,
    pairs: Iterable[PlannedPair],
    check: AttackCheck,
    machine: str,
    listener: Listener,
) -> None:
    """Record for each attack of a run that is not built in whether it depends on its batch.

    Args:
        store: receives the findings; an attack that it has one of on this machine is left out.
        registry: where the attacks are registered.
        pairs: the pairs of the run.
        check: the examination; an exception in it is recorded as not tested.
        machine: the machine class.
        listener: receives a notice for each attack that depends on its batch.
    """
    for name in dict.fromkeys(pair.attack.name for pair in pairs if not pair.reason):
        registration = registry.find("attack", name)
        if registration.origin == "built-in":
            continue
        digest = attack_digest(registration)
        known = {row.diagnostic: row for row in store.evidence(digest, machine)}
        row = known.get(BATCH_CHECK)
        if row is None:
            found = _examined(registry, registration.value, check)
            row = EvidenceRow(BATCH_CHECK, str(found.finding), found.sentence, "")
            store.record_evidence(ATTACK_OWNER, digest, machine, row)
        if row.finding == Finding.WARNING:
            listener(RunNotice(f"{name}: {row.sentence}"))


def _examined(registry: Registry, attack: Attack, check: AttackCheck) -> Evidence:
    try:
        with torch.random.fork_rng([]):
            return check(registry, attack)
    except PLUGIN_EXCEPTIONS as error:  # its cells will fail with this, and stop no other
        return Evidence(Finding.NOT_TESTED, f"It could not be examined: {error_text(error)}.")
