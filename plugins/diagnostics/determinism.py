"""Sameness: one image, one answer, whenever it is asked and whoever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Diagnostic, Evidence, Finding, cross_entropy, hookimpl
from plugins.diagnostics._model_probe import input_gradient, logits_of, seeded_random_state

TOLERANCE = 1e-4
"""Of the logit scale; honest kernels differ by far less between batch sizes."""
NOISE = 8 / 255
"""Noise: a defense may keep its dice for images that are off the grid of clean ones."""


class Deterministic:
    """Whether an answer comes again, also after a gradient was asked; as the defense declares."""

    name = "deterministic"
    summary = "Raised when answers vary undeclared, or do not vary although randomness is declared."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """Three forwards and a gradient at the clean images, and again where attacks go."""
        with seeded_random_state(x):
            beside = (x + NOISE * (2 * torch.rand(x.shape).to(x) - 1)).clamp(0, 1)
            moved = max(change_on_repeat(module, images, y) for images in (x, beside))
        declared = defense.randomness is not None
        sentence = f"asked again, answers move by {moved:.2g} of the logit scale"
        if declared == (moved > TOLERANCE):
            return Evidence(Finding.CLEAR, f"{sentence}, as declared.")
        word = "randomness is declared" if declared else "no randomness is declared"
        return Evidence(Finding.RAISED, f"{sentence}, but {word}.")


def change_on_repeat(module: nn.Module, images: Tensor, y: Tensor) -> float:
    """How far answers move when they are asked for again, before a gradient and after it."""
    first = logits_of(module, images)
    moved = relative_change(logits_of(module, images), first)
    input_gradient(module, images, lambda logits: cross_entropy(logits, y))
    return max(moved, relative_change(logits_of(module, images), first))


class BatchIndependent:
    """Whether an answer depends on the images beside it or on its place among them."""

    name = "batch-independent"
    summary = "Raised when an image alone, or in reverse order, is answered otherwise."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """The batch, the batch reversed, and each image alone."""
        if defense.randomness is not None:
            sentence = "the defense is declared random, so answers differ anyway."
            return Evidence(Finding.NOT_TESTED, sentence)
        with seeded_random_state(x):
            together = logits_of(module, x)
            alone = torch.cat([logits_of(module, row[None]) for row in x])
            reverse = logits_of(module, x.flip(0)).flip(0)
        moved = max(relative_change(alone, together), relative_change(reverse, together))
        sentence = f"alone or in reverse order, answers move by {moved:.2g} of the logit scale"
        if moved <= TOLERANCE:
            return Evidence(Finding.CLEAR, f"{sentence}.")
        return Evidence(Finding.RAISED, f"{sentence}, more than {TOLERANCE:g}.")


def relative_change(a: Tensor, b: Tensor) -> float:
    """max |a - b| over max |b|; infinite where an answer is not finite."""
    scale = b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)
    value = float((a - b).abs().max() / scale)
    return value if value == value else float("inf")


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Offer both looks."""
    yield Deterministic()
    yield BatchIndependent()
