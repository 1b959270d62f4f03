"""Asks the diagnostics what they see in a built defense, once for each set of examples."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.arena import Arena
from bench.blame import blame
from bench.events import Event, Listener
from bench.plugin import Diagnostic, Evidence, Finding
from bench.registry import STRANGE, Registry
from bench.store import Store

LOOKED_AT = 64  # clean images


def diagnose(
    store: Store, registry: Registry, arena: Arena, listener: Listener, beat: Callable[[], None]
) -> None:
    """Note what every diagnostic finds; one that fails has tested nothing, and it is said.

    Args:
        store: gets the findings.
        registry: where the diagnostics are.
        arena: the defense.
        listener: hears of diagnostics that failed.
        beat: is called after each of them.
    """
    for name, offer in registry.diagnostics.items():
        try:
            finding, sentence = evidence(offer.value, arena)
        except STRANGE as error:
            finding, sentence = Finding.NOT_TESTED, f"It failed: {blame(error).reason}"
            listener(Event("odd", f"{name} tells nothing of {arena.defense.name}. {sentence}"))
        whose = (arena.defense.name, arena.digest, arena.examples.digest)
        store.note(*whose, name, str(finding), sentence)
        beat()


def evidence(tool: Diagnostic, arena: Arena) -> Evidence:
    """What one diagnostic finds; it draws the same on every run."""
    device = arena.setting.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.random.manual_seed(arena.seed)
        images, labels = arena.x[:LOOKED_AT], arena.y[:LOOKED_AT]
        found = tool.examine(arena.classifier, images, labels, arena.defense)
    return Evidence(Finding(found.finding), str(found.sentence))
