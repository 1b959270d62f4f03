"""Gradient diagnostic: compares a model's gradient with finite differences of its logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl, margin
from plugins.diagnostics._model_probe import (
    ATTACK_ROWS,
    ModelDiagnostic,
    input_gradient,
    random_signs,
    rounding,
    seeded_logits,
    seeded_random_state,
    warn_if,
)

LEAST = 0.9
DIRECTIONS = 4
STEPS = (2.0**-10, 2.0**-8, 2.0**-6)
"""From a quarter of a grey level, below most kinks, to four, for logits of low resolution."""
ABOVE_ROUNDING = 8.0
"""A difference of the margin counts above so many rounding errors."""
LEAST_IMAGES = 4
SIGNIFICANT = 1 / 16
"""Least share of the images whose margin must change by more than rounding errors."""


class Differences(NamedTuple):
    """Differences f(x + hv) - f(x - hv) of the margin f, as [DIRECTIONS, n] each."""

    analytic: Tensor
    """As the gradient predicts."""
    numeric: Tensor
    """As observed."""
    noise: Tensor
    """Size of rounding errors."""

    @property
    def significant(self) -> Tensor:
        """[n]: images for which either difference is above rounding in one direction."""
        size = torch.maximum(self.analytic.abs(), self.numeric.abs())
        return (size > ABOVE_ROUNDING * self.noise).any(0)

    def of(self, images: Tensor) -> Differences:
        """The differences of these images, bool [n]."""
        return Differences(*(column[:, images] for column in self))


class GradientAgrees(ModelDiagnostic):
    """Correlation of g.v with (f(x + hv) - f(x - hv)) / 2h, for the margin f and random signs v.

    Both are divided by the image's largest value, so that a few steep images do not dominate.
    Images whose margin is flat, within rounding errors, do not count; where few count, h is larger.
    Every pixel is first moved into [h, 1 - h], so that x + hv and x - hv are images
    (arXiv:1802.00420). All queries of a declared-random defense use equal seeds.
    """

    name = "gradient-agrees"
    cite = "arXiv:1802.00420"
    summary = f"Raised when gradients and finite differences correlate by less than {LEAST}."
    images = ATTACK_ROWS

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the correlation, over four directions per image."""
        found = compared_differences(subject)
        count = int(found.significant.sum())
        n = len(subject.x)
        if count < min(LEAST_IMAGES, n):
            sentence = (
                f"the margin is flat within rounding errors on {n - count} of {n} images, so there"
                " is nothing to compare"
            )
            return Evidence(Finding.NOT_TESTED, f"{sentence}.")
        found = found.of(found.significant)
        value = correlation(*scaled_per_image(found.analytic, found.numeric))
        sentence = (
            f"gradients and finite differences correlate by {value:.3f} on {count} of {n} images"
            " with a margin that is not flat"
        )
        if value >= LEAST:
            return warn_if(False, f"{sentence}.")
        if subject.defense.bpda is not None:
            zero = "" if found.analytic.any() else "the true gradient is zero, and "
            note = (
                f"{zero}{sentence}; attacks use the declared BPDA approximation beside it, which"
                " approximation-ascends tests"
            )
            return Evidence(Finding.NOT_TESTED, f"{note}.")
        return warn_if(True, f"{sentence}, less than {LEAST}; the gradient is misleading.")


def compared_differences(subject: Subject) -> Differences:
    """The differences for the smallest step that changes the margins of enough images."""
    wanted = max(LEAST_IMAGES, SIGNIFICANT * len(subject.x))
    tried = []
    for step in STEPS:
        tried.append(differences(subject, step))
        if int(tried[-1].significant.sum()) >= wanted:
            return tried[-1]
    enough = (one for one in tried if int(one.significant.sum()) >= LEAST_IMAGES)
    return next(enough, tried[-1])


def differences(subject: Subject, step: float) -> Differences:
    """The differences of the margin that the gradient predicts, and those observed."""
    module, y, x = subject.module, subject.y, subject.x.clamp(step, 1 - step)
    with seeded_random_state(x):
        gradient = input_gradient(module, x, lambda logits: margin(logits, y)).double()
    generator = torch.Generator().manual_seed(0)
    noise = rounding(seeded_logits(module, x)).double()
    analytic, numeric = [], []
    for _ in range(DIRECTIONS):
        v = random_signs(x, generator)
        ahead, behind = (
            margin(seeded_logits(module, x + h * v).double(), y) for h in (step, -step)
        )
        analytic.append(2 * step * (gradient * v).flatten(1).sum(1))
        numeric.append(ahead - behind)
    stacked = torch.stack(analytic)
    return Differences(stacked, torch.stack(numeric), noise.expand_as(stacked))


def scaled_per_image(analytic: Tensor, numeric: Tensor) -> tuple[Tensor, Tensor]:
    """Both [DIRECTIONS, n], divided by the largest value of each image; zeros remain zeros."""
    size = torch.maximum(analytic.abs(), numeric.abs()).amax(0)
    unit = torch.where(size > 0, size, 1)
    return analytic / unit, numeric / unit


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of a [...] and b [...]; 0 where one does not vary or is not finite."""
    a, b = a - a.mean(), b - b.mean()
    value = float((a * b).sum() / (a.norm() * b.norm()))
    return value if abs(value) <= 2 else 0.0


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the comparison with finite differences."""
    yield GradientAgrees()
