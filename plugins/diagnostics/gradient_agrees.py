"""Gradient agrees: the slope that a module reports is the slope that its answers have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Diagnostic, Evidence, Finding, hookimpl, margin
from plugins.diagnostics._model_probe import input_gradient, logits_of, seeded_random_state

LEAST = 0.9
DIRECTIONS = 4
STEP = 2.0**-10  # a quarter of a grey level: above float32's noise, below most kinks


class GradientAgrees:
    """Correlation of g.v with (f(x + hv) - f(x - hv)) / 2h, for the margin f and random signs v.

    Both are in units of the image's largest, so that a few steep images cannot speak for the rest.
    Asked where x + hv and x - hv are images: every pixel is first moved into [h, 1 - h].
    """

    name = "gradient-agrees"
    cite = "arXiv:1802.00420"
    summary = f"Raised when gradients and finite differences correlate by less than {LEAST}."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """Four directions an image."""
        if defense.randomness is not None:
            sentence = "the defense is declared random, so its differences are noise."
            return Evidence(Finding.NOT_TESTED, sentence)
        with seeded_random_state(x):
            told, seen = directional_derivatives(module, x.clamp(STEP, 1 - STEP), y)
        if not (told.any() or seen.any()):
            sentence = "the margin is flat and its gradient zero, so there is nothing to compare."
            return Evidence(Finding.NOT_TESTED, sentence)
        value = correlation(*scaled_per_image(told, seen))
        sentence = f"gradients and finite differences correlate by {value:.3f}"
        if value >= LEAST:
            return Evidence(Finding.CLEAR, f"{sentence}.")
        return Evidence(Finding.RAISED, f"{sentence}, less than {LEAST}; the gradient misleads.")


def directional_derivatives(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """[DIRECTIONS, n] each: directional derivatives from the gradient, and from differences."""
    gradient = input_gradient(module, x, lambda logits: margin(logits, y))
    generator = torch.Generator().manual_seed(0)
    told, seen = [], []
    for _ in range(DIRECTIONS):
        coin = torch.randint(0, 2, x.shape, generator=generator)
        v = (2 * coin - 1).to(x)
        ahead, behind = (margin(logits_of(module, x + h * v), y) for h in (STEP, -STEP))
        told.append((gradient * v).flatten(1).sum(1))
        seen.append((ahead - behind) / (2 * STEP))
    return torch.stack(told).double(), torch.stack(seen).double()


def scaled_per_image(told: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Both [DIRECTIONS, n] over the largest size among an image's own; zeros stay zeros."""
    size = torch.maximum(told.abs(), seen.abs()).amax(0)
    unit = torch.where(size > 0, size, 1)
    return told / unit, seen / unit


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's; 0 where one of them does not vary or is not finite."""
    a, b = a - a.mean(), b - b.mean()
    value = float((a * b).sum() / (a.norm() * b.norm()))
    return value if abs(value) <= 2 else 0.0


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Offer the comparison with finite differences."""
    yield GradientAgrees()
