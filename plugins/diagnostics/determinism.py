"""Determinism diagnostics: equal logits on repeated queries and in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Diagnostic, Evidence, Finding, cross_entropy, hookimpl
from plugins.diagnostics._model_probe import input_gradient, logits_of, seeded_random_state

TOLERANCE = 1e-4
"""In units of the largest logit; numerical differences between batch sizes are far smaller."""
NOISE = 8 / 255
"""Size of noise: a defense may be random only at images off the 8-bit grid."""


class Deterministic:
    """Whether repeated queries, also after a gradient, give equal logits, as declared."""

    name = "deterministic"
    summary = "Raised when logits vary undeclared, or do not vary although declared random."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """The finding and the largest change, for clean images x [n, C, H, W] and noisy ones.

        Each is queried three times, with one gradient evaluation in between.
        """
        with seeded_random_state(x):
            beside = (x + NOISE * (2 * torch.rand(x.shape).to(x) - 1)).clamp(0, 1)
            moved = max(change_on_repeat(module, images, y) for images in (x, beside))
        declared = defense.randomness is not None
        sentence = f"on repeated queries logits change by {moved:.2g} of the largest logit"
        if declared == (moved > TOLERANCE):
            return Evidence(Finding.PASSED, f"{sentence}, as declared.")
        word = "randomness is declared" if declared else "no randomness is declared"
        return Evidence(Finding.WARNING, f"{sentence}, but {word}.")


def change_on_repeat(module: nn.Module, images: Tensor, y: Tensor) -> float:
    """The largest change of the logits of images [n, C, H, W] on repeats, around a gradient."""
    first = logits_of(module, images)
    moved = relative_change(logits_of(module, images), first)
    input_gradient(module, images, lambda logits: cross_entropy(logits, y))
    return max(moved, relative_change(logits_of(module, images), first))


class BatchIndependent:
    """Whether the logits of an image depend on the other images of its batch or their order."""

    name = "batch-independent"
    summary = "Raised when the logits of an image change alone or in reverse order."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """The finding and the largest change: x [n, C, H, W], reversed, and one by one."""
        if defense.randomness is not None:
            sentence = "the defense is declared random, so its logits differ in any case."
            return Evidence(Finding.NOT_TESTED, sentence)
        with seeded_random_state(x):
            together = logits_of(module, x)
            alone = torch.cat([logits_of(module, row[None]) for row in x])
            reverse = logits_of(module, x.flip(0)).flip(0)
        moved = max(relative_change(alone, together), relative_change(reverse, together))
        sentence = f"alone or in reverse order, logits change by {moved:.2g} of the largest logit"
        if moved <= TOLERANCE:
            return Evidence(Finding.PASSED, f"{sentence}.")
        return Evidence(Finding.WARNING, f"{sentence}, more than {TOLERANCE:g}.")


def relative_change(a: Tensor, b: Tensor) -> float:
    """The largest |a - b| over the largest |b|, for logits [n, K].

    Infinite where one is not finite.
    """
    scale = b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)
    value = float((a - b).abs().max() / scale)
    return value if value == value else float("inf")


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register both diagnostics."""
    yield Deterministic()
    yield BatchIndependent()
