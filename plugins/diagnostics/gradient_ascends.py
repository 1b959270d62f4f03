"""Diagnostics of gradient steps: they must raise the loss more than random directions do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.plugin import (
    Diagnostic,
    Evidence,
    Finding,
    Subject,
    default_batch,
    hookimpl,
    margin,
)
from plugins.diagnostics._model_probe import (
    ModelDiagnostic,
    draws_of,
    input_gradient,
    random_signs,
    repeated,
    rounding,
    seeded_logits,
    seeded_random_state,
    warn_if,
)

SIZES = (8 / 255, 32 / 255)
"""Sizes of a step in every pixel; the second shows where a smaller one changes nothing."""
RANDOM = 4
"""Random directions per image."""
LEAST_WINS = 0.75
"""Least share of the images on which the step along the gradient raises the margin more."""
LEAST_IMAGES = 10
DRAWS = 8
"""Draws over which a margin of a declared-random defense is averaged."""


class Wins(NamedTuple):
    """On how many images a gradient step raises the margin more than random directions."""

    won: int
    counted: int
    size: float

    @property
    def is_short(self) -> bool:
        """Whether the gradient helps on too few images."""
        return self.won < LEAST_WINS * self.counted

    def sentence(self, what: str) -> str:
        """The figures of a comparison."""
        return (
            f"a step of {self.size:.3f} along {what} raises the margin more than random signs on"
            f" {self.won} of {self.counted} images whose margin changes; a warning needs less than"
            f" {LEAST_WINS:.0%}"
        )


class GradientAscends(ModelDiagnostic):
    """Whether a step along the gradient of the margin raises it more than random directions do."""

    name = "gradient-ascends"
    cite = "arXiv:1802.00420"
    summary = "Raised when gradients help no more than random directions."

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the number of images on which the gradient helps."""
        gradient = true_gradient(subject)
        if not gradient.any():
            sentence = "the true gradient is zero; see zero-gradients and approximation-ascends."
            return Evidence(Finding.NOT_TESTED, sentence)
        # Images without a gradient are those of zero-gradients.
        used = gradient.flatten(1).any(1)
        part = subject._replace(x=subject.x[used], y=subject.y[used])
        return judged(part, gradient[used], "the gradient")


class ApproximationAscends(ModelDiagnostic):
    """Whether a step along the gradient of the declared BPDA approximation raises the margin.

    The margin is that of the defense itself, and the step competes with random directions.
    """

    name = "approximation-ascends"
    cite = "arXiv:1802.00420"
    summary = "Raised when the BPDA approximation helps no more than random directions."

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the number of images on which the approximation helps."""
        if subject.bpda is None:
            return Evidence(Finding.NOT_TESTED, "No BPDA approximation is declared.")
        return judged(subject, bpda_gradient(subject.bpda, subject), "the BPDA approximation")


def judged(subject: Subject, gradient: Tensor, what: str) -> Evidence:
    """The finding on a gradient [n, C, H, W]."""
    n = len(subject.x)
    needed = min(LEAST_IMAGES, max(1, n))
    tried: list[Wins] = []
    for size in SIZES:
        if not any(not one.is_short for one in tried):
            found = wins(subject, gradient, size)
            tried += [found] if found.counted >= needed else []
    if not tried:
        sentence = (
            f"a step of {SIZES[-1]:.3f} changes the margin on fewer than {needed} of {n} images."
        )
        return Evidence(Finding.NOT_TESTED, sentence)
    best = max(tried, key=lambda one: one.won / one.counted)
    return warn_if(best.is_short, f"{best.sentence(what)}.")


def in_full_batch(subject: Subject) -> Subject:
    """The subject with its images repeated to a batch as large as those of an attack."""
    rows = max(default_batch(subject.x.shape[1:]), len(subject.x))
    return subject._replace(x=repeated(subject.x, rows), y=repeated(subject.y, rows))


def true_gradient(subject: Subject) -> Tensor:
    """The gradient [n, C, H, W] of the margin of the defense itself, the mean over its draws."""
    n, subject = len(subject.x), in_full_batch(subject)
    total = torch.zeros_like(subject.x)
    for seed in range(draws_of(subject.defense)):
        with seeded_random_state(subject.x, seed):
            total += input_gradient(
                subject.module, subject.x, lambda logits: margin(logits, subject.y)
            )
    return torch.nan_to_num(total[:n])


def bpda_gradient(bpda: nn.Module, subject: Subject) -> Tensor:
    """The gradient [n, C, H, W] that attacks get: of the approximation, weighted by the margin.

    The weights are the derivatives of the margin at the defense's own logits.
    """
    n, subject = len(subject.x), in_full_batch(subject)
    total = torch.zeros_like(subject.x)
    for seed in range(draws_of(subject.defense)):
        answer = seeded_logits(subject.module, subject.x, seed).requires_grad_()
        (weight,) = torch.autograd.grad(margin(answer, subject.y).sum(), answer)
        with seeded_random_state(subject.x, seed):
            total += input_gradient(bpda, subject.x, partial(weighted, weight))
    return torch.nan_to_num(total[:n])


def weighted(weight: Tensor, logits: Tensor) -> Tensor:
    """The sums [n] of logits [n, K] with weights [n, K]."""
    total: Tensor = (logits * weight).sum(1)
    return total


def wins(subject: Subject, gradient: Tensor, size: float) -> Wins:
    """Compare a signed step along a gradient [n, C, H, W] with random signs of the same size."""
    x = subject.x
    generator = torch.Generator().manual_seed(0)
    noise = rounding(seeded_logits(subject.module, x))
    ahead = mean_margin(subject, (x + size * gradient.sign()).clamp(0, 1))
    beside = torch.stack(
        [
            mean_margin(subject, (x + size * random_signs(x, generator)).clamp(0, 1))
            for _ in range(RANDOM)
        ]
    )
    gain = ahead - beside.mean(0)
    counted = gain.abs() > noise
    return Wins(int((gain[counted] > 0).sum()), int(counted.sum()), size)


def mean_margin(subject: Subject, images: Tensor) -> Tensor:
    """The margin [n] of images [n, C, H, W], averaged over draws of a random defense."""
    draws = 1 if subject.defense.randomness is None else DRAWS
    answers = (seeded_logits(subject.module, images, seed) for seed in range(draws))
    return torch.stack([margin(logits, subject.y) for logits in answers]).mean(0)


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register both diagnostics."""
    yield GradientAscends()
    yield ApproximationAscends()
