"""Runs the diagnostics on a built defense, once per set of examples and diagnostic version."""

from __future__ import annotations

from bench.core.errors import PLUGIN_EXCEPTIONS
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.events import Listener, RunNotice
from bench.evaluation.failures import failure_of
from bench.plugin import Diagnostic, Evidence, Finding
from bench.registry.registry import Registry
from bench.store import EvidenceRow, Store

DIAGNOSTIC_IMAGES = 64  # clean images that a diagnostic receives


def run_diagnostics(
    store: Store, registry: Registry, built: BuiltDefense, listener: Listener
) -> None:
    """Record the finding of every diagnostic; one that fails is recorded as not tested.

    Args:
        store: receives the findings; diagnostics whose finding it has do not run again.
        registry: where the diagnostics are registered.
        built: the defense.
        listener: receives a notice for each diagnostic that fails.
    """
    known = store.evidence(built.digest, built.examples.digest)
    recorded = {(row.diagnostic, row.source) for row in known}
    for name, registration in registry.diagnostics.items():
        if (name, registration.source) in recorded:
            continue
        try:
            finding, sentence = evidence_of(registration.value, built)
        except PLUGIN_EXCEPTIONS as error:
            finding, sentence = Finding.NOT_TESTED, f"It failed: {failure_of(error).reason}"
            listener(RunNotice(f"{name} gives no finding for {built.defense.name}. {sentence}"))
        names = (built.defense.name, built.digest, built.examples.digest)
        row = EvidenceRow(name, str(finding), sentence, registration.source)
        store.record_evidence(*names, row)


def evidence_of(diagnostic: Diagnostic, built: BuiltDefense) -> Evidence:
    """The finding of one diagnostic; its random draws are the same on every run."""
    with built.fixed_random_state():
        images, labels = built.x[:DIAGNOSTIC_IMAGES], built.y[:DIAGNOSTIC_IMAGES]
        found = diagnostic.examine(built.classifier, images, labels, built.defense)
    return Evidence(Finding(found.finding), str(found.sentence))
