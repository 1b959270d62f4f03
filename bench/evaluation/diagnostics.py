"""Asks the diagnostics what they see in a built defense, once for each set of examples."""

from __future__ import annotations

import torch

from bench.core.errors import PLUGIN_EXCEPTIONS
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.events import Event, Listener
from bench.evaluation.failures import failure_of
from bench.plugin import Diagnostic, Evidence, Finding
from bench.registry.registry import Registry
from bench.store import EvidenceRow as Note
from bench.store import Store

LOOKED_AT = 64  # clean images


def run_diagnostics(
    store: Store, registry: Registry, arena: BuiltDefense, listener: Listener
) -> None:
    """Note what every diagnostic finds; one that fails has tested nothing, and it is said.

    Args:
        store: gets the findings; what it has of a diagnostic as it stands is not asked again.
        registry: where the diagnostics are.
        arena: the defense.
        listener: hears of diagnostics that failed.
    """
    known = store.evidence(arena.digest, arena.examples.digest)
    noted = {(note.diagnostic, note.source) for note in known}
    for name, offer in registry.diagnostics.items():
        if (name, offer.source) in noted:
            continue
        try:
            finding, sentence = evidence_of(offer.value, arena)
        except PLUGIN_EXCEPTIONS as error:
            finding, sentence = Finding.NOT_TESTED, f"It failed: {failure_of(error).reason}"
            listener(Event("odd", f"{name} tells nothing of {arena.defense.name}. {sentence}"))
        whose = (arena.defense.name, arena.digest, arena.examples.digest)
        store.note(*whose, Note(name, str(finding), sentence, offer.source))


def evidence_of(tool: Diagnostic, arena: BuiltDefense) -> Evidence:
    """What one diagnostic finds; it draws the same on every run."""
    device = arena.setting.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.random.manual_seed(arena.seed)
        images, labels = arena.x[:LOOKED_AT], arena.y[:LOOKED_AT]
        found = tool.examine(arena.classifier, images, labels, arena.defense)
    return Evidence(Finding(found.finding), str(found.sentence))
