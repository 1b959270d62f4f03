"""Runs the diagnostics on a built defense, once per set of examples and diagnostic version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from bench.core.errors import PLUGIN_EXCEPTIONS, PluginError
from bench.core.visible_text import encodable_text
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.events import Listener, RunNotice
from bench.evaluation.failures import failure_of
from bench.evaluation.subjects import subject_of
from bench.plugin import Diagnostic, Evidence, Finding
from bench.registry.registry import Registry
from bench.sandbox.deadline import CELL_DEADLINE
from bench.store import EvidenceRow, Store

DIAGNOSTIC_IMAGES = 256  # at most, clean images that a diagnostic receives


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
    """The finding of one diagnostic; its random draws are the same on every run.

    Raises PluginError where it returns something else, or takes longer than a cell may.
    """
    subject = subject_of(built, DIAGNOSTIC_IMAGES)
    with ExitStack() as stack:
        stack.enter_context(CELL_DEADLINE.interrupting(diagnostic.name))
        stack.enter_context(built.fixed_random_state())
        for module in (subject.module, subject.bpda):
            if module is not None:
                stack.enter_context(copied_images(module))
        examine_subject = getattr(diagnostic, "examine_subject", None)
        if examine_subject is None:
            found = diagnostic.examine(subject.module, subject.x, subject.y, subject.defense)
        else:
            found = examine_subject(subject)
    if not isinstance(found, Evidence) or found.finding not in list(Finding):
        raise PluginError(
            f"{diagnostic.name}.examine returned {found!r}; Evidence(Finding, sentence) was "
            "expected."
        )
    built.guard.check(diagnostic.name)
    return Evidence(Finding(found.finding), encodable_text(str(found.sentence)))


@contextmanager
def copied_images(module: nn.Module) -> Iterator[None]:
    """A context in which each call of a module gets a copy of its images, and gives a copy.

    So a module that writes into its images, or into an answer that it gave before, does not change
    what a diagnostic compares.
    """

    def copy_images(_: nn.Module, images: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part.clone() if isinstance(part, Tensor) else part for part in images)

    def copy_answer(_: nn.Module, __: tuple[Any, ...], answer: Any) -> Any:
        return answer.clone() if isinstance(answer, Tensor) else answer

    hooks = (
        module.register_forward_pre_hook(copy_images),
        module.register_forward_hook(copy_answer),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
