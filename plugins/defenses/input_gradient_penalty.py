"""Input-gradient regularisation: a loss that is flat in the image. Drucker and LeCun 1991.

To first order max over ||d||_inf <= eps of L(x + d) is L(x) + eps ||grad_x L||_1, which is exact
for a linear loss (arXiv:1711.09404).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import Defense, Recipe, TrainingBatch, cross_entropy, hookimpl
from plugins.defenses._cnn import cnn, trained

FLAT = 0.15
DOUBLE = 1.0


def loss_and_slope(batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """L = -log p(y | x) [n], and grad_x L [n, d] with a graph of its own."""
    x = batch.x.detach().requires_grad_()
    loss = cross_entropy(batch.model(x), batch.y)
    (slope,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    return loss, slope.flatten(1)


def flat(batch: TrainingBatch, strength: float) -> Tensor:
    """L + strength ||grad_x L||_1."""
    loss, slope = loss_and_slope(batch)
    return loss + strength * slope.abs().sum(1)


def double_backprop(batch: TrainingBatch, strength: float) -> Tensor:
    """L + strength / 2 ||grad_x L||_2^2."""
    loss, slope = loss_and_slope(batch)
    return loss + strength / 2 * slope.square().sum(1)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer both norms."""
    yield Defense(
        name="input-gradient-l1",
        cite="arXiv:1711.09404",
        summary=f"Clean images, and {FLAT:g} times the L1 norm of the input gradient.",
        recipe=Recipe(
            cnn,
            partial(flat, strength=FLAT),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"strength": FLAT},
        ),
        build=trained,
        quick=False,
    )
    yield Defense(
        name="double-backprop",
        cite="doi:10.1109/72.165600",
        summary=f"Clean images, and {DOUBLE:g} / 2 times the squared input gradient.",
        recipe=Recipe(
            cnn,
            partial(double_backprop, strength=DOUBLE),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"strength": DOUBLE},
        ),
        build=trained,
        quick=False,
    )
