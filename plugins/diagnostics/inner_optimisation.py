"""Diagnostic of defenses that optimise while they answer, and do not declare it."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl
from plugins.diagnostics._model_probe import ModelDiagnostic, warn_if

MANY = 4
"""So many times the declared passes of the network may be made without a warning."""


class InnerOptimisation(ModelDiagnostic):
    """Whether the defense takes gradients or repeats its network more often than it declares.

    Attacks on such a dynamic defense need more steps, and answers of a static copy to transfer
    from. A declaration of `forwards` that counts the passes of the optimisation shows its cost and
    leaves this check clear: each gradient needs a pass besides that of the answer.
    """

    name = "inner-optimisation"
    cite = "arXiv:2202.13711"
    summary = "Raised when a defense optimises while it answers and does not declare the passes."
    images = 4

    def finding(self, subject: Subject) -> Evidence:
        """The finding, the passes of the network and the gradients of one answer."""
        if subject.answer_work is None:
            return Evidence(Finding.NOT_TESTED, "What it computes cannot be observed.")
        found, declared = subject.answer_work(subject.x), subject.defense.forwards
        dynamic = found.gradients >= declared
        raised = dynamic or found.passes > MANY * declared
        kind = "dynamic: it optimises while it answers" if dynamic else "it repeats its network"
        sentence = (
            f"for one answer it takes {found.gradients} gradients and makes {found.passes} passes"
            f" of its network, and declares forwards={declared}"
        )
        if raised:
            needed = max(found.passes, found.gradients + 1)
            sentence = f"{kind}: {sentence}; declare forwards={needed}"
        return warn_if(raised, f"{sentence}.")


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the test of optimisation that is not declared."""
    yield InnerOptimisation()
