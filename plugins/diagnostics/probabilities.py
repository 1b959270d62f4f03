"""Probability diagnostic: finds models that return probabilities instead of logits.

After a softmax the losses of attacks that expect logits have tiny gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl
from plugins.diagnostics._model_probe import ModelDiagnostic, logits_of

NEAR = 1e-3


class Probabilities(ModelDiagnostic):
    """Whether every output is a distribution: entries in [0, 1] that sum to 1."""

    name = "probabilities"
    cite = "arXiv:2003.01690"
    summary = "Raised when the output is a probability distribution instead of logits."

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the range of the outputs."""
        output = logits_of(subject.module, subject.x)
        low, high = float(output.min()), float(output.max())
        off = float((output.sum(1) - 1).abs().max())
        if low >= 0 and high <= 1 + NEAR and off <= NEAR:
            sentence = (
                f"all outputs lie in [{low:.2g}, {high:.2g}] and sum to 1; return logits instead."
            )
            return Evidence(Finding.WARNING, sentence)
        sentence = f"outputs lie in [{low:.2g}, {high:.2g}], their sums up to {off:.2g} from 1."
        return Evidence(Finding.PASSED, sentence)


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the check of the output."""
    yield Probabilities()
