"""Gradient diagnostic: compares a model's gradient with finite differences of its logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Diagnostic, Evidence, Finding, hookimpl, margin
from plugins.diagnostics._model_probe import input_gradient, logits_of, seeded_random_state

LEAST = 0.9
DIRECTIONS = 4
STEP = 2.0**-10  # a quarter of a grey level: above float32's rounding, below most kinks


class GradientAgrees:
    """Correlation of g.v with (f(x + hv) - f(x - hv)) / 2h, for the margin f and random signs v.

    Both are divided by the image's largest value, so that a few steep images do not dominate. Every
    pixel is first moved into [h, 1 - h], so that x + hv and x - hv are images (arXiv:1802.00420).
    """

    name = "gradient-agrees"
    cite = "arXiv:1802.00420"
    summary = f"Raised when gradients and finite differences correlate by less than {LEAST}."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """The finding and the correlation, for images x [n, C, H, W] and four directions each."""
        if defense.randomness is not None:
            sentence = "the defense is declared random, so finite differences measure its noise."
            return Evidence(Finding.NOT_TESTED, sentence)
        with seeded_random_state(x):
            analytic, numeric = directional_derivatives(module, x.clamp(STEP, 1 - STEP), y)
        if not (analytic.any() or numeric.any()):
            sentence = (
                "the margin is constant and its gradient zero, so there is nothing to compare."
            )
            return Evidence(Finding.NOT_TESTED, sentence)
        value = correlation(*scaled_per_image(analytic, numeric))
        sentence = f"gradients and finite differences correlate by {value:.3f}"
        if value >= LEAST:
            return Evidence(Finding.PASSED, f"{sentence}.")
        return Evidence(
            Finding.WARNING, f"{sentence}, less than {LEAST}; the gradient is misleading."
        )


def directional_derivatives(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Directional derivatives from the gradient and from differences, [DIRECTIONS, n] each.

    `x` is [n, C, H, W].
    """
    gradient = input_gradient(module, x, lambda logits: margin(logits, y))
    generator = torch.Generator().manual_seed(0)
    analytic, numeric = [], []
    for _ in range(DIRECTIONS):
        coin = torch.randint(0, 2, x.shape, generator=generator)
        v = (2 * coin - 1).to(x)
        ahead, behind = (margin(logits_of(module, x + h * v), y) for h in (STEP, -STEP))
        analytic.append((gradient * v).flatten(1).sum(1))
        numeric.append((ahead - behind) / (2 * STEP))
    return torch.stack(analytic).double(), torch.stack(numeric).double()


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
