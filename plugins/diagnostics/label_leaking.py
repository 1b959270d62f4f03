"""Label-leaking diagnostic: one-step adversarial images must not be easier than clean ones.

A network trained on one-step adversarial images of the true label can learn to read the label from
the perturbation (Kurakin et al. 2017, arXiv:1611.01236, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb

import torch
from torch import Tensor

from bench.plugin import Diagnostic, Evidence, Finding, Subject, cross_entropy, hookimpl
from plugins.diagnostics._model_probe import (
    ModelDiagnostic,
    input_gradient,
    seeded_logits,
    seeded_random_state,
    warn_if,
)

SIZES = (4 / 255, 8 / 255, 16 / 255, 51 / 255)
P_LIMIT = 0.001
LEAST_POINTS = 0.02


class LabelLeaking(ModelDiagnostic):
    """Whether the accuracy on FGSM images of the true label is above the clean accuracy.

    It is compared with the accuracy on FGSM images of the predicted label, which cannot leak.
    """

    name = "label-leaking"
    cite = "arXiv:1611.01236"
    summary = "Raised when one-step images of the true label are easier than clean images."
    images = 256

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the numbers of right answers, for the step with the largest gain."""
        x, y, module = subject.x, subject.y, subject.module
        predicted = seeded_logits(module, x).argmax(1)
        clean = predicted == y
        true_steps, blind_steps = (signs(subject, label) for label in (y, predicted))
        if not true_steps.any():
            return Evidence(Finding.NOT_TESTED, "The gradient of the cross-entropy is zero.")
        found = []
        for size in SIZES:
            right = seeded_logits(module, (x + size * true_steps).clamp(0, 1)).argmax(1) == y
            gained, lost = int((right & ~clean).sum()), int((clean & ~right).sum())
            found.append((gained - lost, gained, lost, size))
        lead, gained, lost, size = max(found)
        blind = seeded_logits(module, (x + size * blind_steps).clamp(0, 1)).argmax(1) == y
        n = len(x)
        p = sum(comb(gained + lost, i) for i in range(gained, gained + lost + 1)) / 2 ** (
            gained + lost
        )
        return warn_if(
            p < P_LIMIT and lead >= LEAST_POINTS * n,
            f"of {n} images {int(clean.sum())} are right clean, {int(clean.sum()) + lead} after"
            f" a signed step of {size:.3f} along the gradient for the true label and"
            f" {int(blind.sum())} for the predicted one; {gained} are gained and {lost} lost"
            f" (p = {p:.2g}, exact; a warning needs p < {P_LIMIT:g} and {LEAST_POINTS:.0%}).",
        )


def signs(subject: Subject, label: Tensor) -> Tensor:
    """Signs [n, C, H, W] of the gradient of the cross-entropy for labels [n]."""
    with seeded_random_state(subject.x):
        gradient = input_gradient(
            subject.module, subject.x, lambda logits: cross_entropy(logits, label)
        )
    return torch.nan_to_num(gradient).sign()


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the comparison of one-step and clean images."""
    yield LabelLeaking()
