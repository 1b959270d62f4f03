"""Input-gradient regularisation: penalises the gradient of the loss with respect to the image.

Drucker and LeCun 1991, doi:10.1109/72.165600. To first order max over ||d||_inf <= eps of L(x + d)
is L(x) + eps ||grad_x L||_1, which is exact for a linear loss (arXiv:1711.09404).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.plugin import Defense, Recipe, TrainingBatch, cross_entropy, hookimpl
from plugins.defenses._cnn import cnn, trained

L1_STRENGTH = 0.15
L2_STRENGTH = 1.0


def loss_and_gradient(batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """The loss L = -log p(y | x) [n], and its gradient for x [n, d] with a graph."""
    x = batch.x.detach().requires_grad_()
    loss = cross_entropy(batch.model(x), batch.y)
    (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    return loss, gradient.flatten(1)


def l1_penalty_loss(batch: TrainingBatch, strength: float) -> Tensor:
    """The loss with an L1 penalty on its input gradient: L + strength ||grad_x L||_1 [n]."""
    loss, gradient = loss_and_gradient(batch)
    return loss + strength * gradient.abs().sum(1)


def l2_penalty_loss(batch: TrainingBatch, strength: float) -> Tensor:
    """The loss with a squared penalty on its input gradient: L + strength / 2 ||grad_x L||_2^2 [n].

    This is double backpropagation.
    """
    loss, gradient = loss_and_gradient(batch)
    return loss + strength / 2 * gradient.square().sum(1)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the penalty in both norms."""
    yield Defense(
        name="input-gradient-l1",
        cite="arXiv:1711.09404",
        summary=f"Trained with {L1_STRENGTH:g} times the L1 norm of the input gradient.",
        recipe=Recipe(
            cnn,
            partial(l1_penalty_loss, strength=L1_STRENGTH),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"strength": L1_STRENGTH},
        ),
        build=trained,
        quick=False,
    )
    yield Defense(
        name="double-backprop",
        cite="doi:10.1109/72.165600",
        summary=f"Trained with {L2_STRENGTH:g} / 2 times the squared input gradient.",
        recipe=Recipe(
            cnn,
            partial(l2_penalty_loss, strength=L2_STRENGTH),
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"strength": L2_STRENGTH},
        ),
        build=trained,
        quick=False,
    )
