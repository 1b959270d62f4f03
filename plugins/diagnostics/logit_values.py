"""Diagnostics of the values of logits: finite, and of full resolution."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl
from plugins.diagnostics._model_probe import (
    ModelDiagnostic,
    logits_of,
    seeded_random_state,
    uniform_noise,
    warn_if,
)

NOISE = 8 / 255
"""Size of the changes beside which logits must be finite, too."""
LEAST_VALUES = 32
"""So many different logits are needed to see their resolution."""


LEAST_UNITS = 4
"""Difference of the two largest logits, in units in the last place, that is resolved."""


class FiniteLogits(ModelDiagnostic):
    """Whether all logits are finite, on clean images and beside them."""

    name = "finite-logits"
    summary = "Raised when logits are NaN or infinite."
    images = 256

    def examine_subject(self, subject: Subject) -> Evidence:
        """The finding and the number of images without finite logits."""
        x = subject.x[: self.images]
        if not len(x):
            return Evidence(Finding.NOT_TESTED, "There are no images.")
        with seeded_random_state(x):
            beside = uniform_noise(x, NOISE, torch.Generator().manual_seed(0))
            bad = [unanswered(logits_of(subject.module, images)) for images in (x, beside)]
        return warn_if(
            any(bad),
            f"Logits are NaN or infinite on {bad[0]} of {len(x)} clean images and on {bad[1]} of"
            f" {len(x)} images at a distance of {NOISE:.3f}.",
        )


def unanswered(logits: Tensor) -> int:
    """Number of rows of logits [n, K] with a value that is not finite."""
    return int((~torch.isfinite(logits).all(1)).sum())


class LogitResolution(ModelDiagnostic):
    """Whether logits have the resolution of float32.

    float16 has 11 significant bits and bfloat16 has 8, so that small differences of a loss vanish.
    """

    name = "logit-resolution"
    summary = "Raised when all logits are float16 or bfloat16 values."

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the coarsest type that holds every logit."""
        logits = logits_of(subject.module, subject.x)
        if logits.dtype in (torch.float16, torch.bfloat16):
            return Evidence(Finding.WARNING, f"Logits are {logits.dtype}; torch.float32 is needed.")
        values = torch.unique(logits)
        different = len(values)
        if different < LEAST_VALUES and not unresolved(logits).all():
            sentence = f"There are only {different} different logits, too few to see a resolution."
            return Evidence(Finding.NOT_TESTED, sentence)
        if torch.equal(values, values.round()) and values.abs().max() < 2**20:
            sentence = f"All {different} different logits are whole numbers, such as votes."
            return Evidence(Finding.NOT_TESTED, sentence)
        for kind in (torch.float16, torch.bfloat16):
            if torch.equal(values, values.to(kind).to(values.dtype)):
                sentence = f"All {different} different logits are values of {kind}."
                return Evidence(Finding.WARNING, sentence)
        coarse = int(unresolved(logits).sum())
        if coarse > len(logits) / 2:
            sentence = (
                f"On {coarse} of {len(logits)} images the two largest logits differ by less than"
                f" {LEAST_UNITS} units in the last place; a constant hides the differences."
            )
            return Evidence(Finding.WARNING, sentence)
        sentence = f"Of {different} different logits some are neither float16 nor bfloat16 values."
        return Evidence(Finding.PASSED, sentence)


def unresolved(logits: Tensor) -> Tensor:
    """[n]: images whose two largest logits [n, K] differ by few units in the last place.

    A single logit has no difference.
    """
    if logits.shape[1] < 2:
        return torch.zeros(len(logits), dtype=torch.bool)
    top = logits.topk(2, 1).values.double()
    unit = torch.finfo(logits.dtype).eps * logits.abs().amax(1).double()
    return (top[:, 0] - top[:, 1]) < LEAST_UNITS * unit


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register both diagnostics."""
    yield FiniteLogits()
    yield LogitResolution()
