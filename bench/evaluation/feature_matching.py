"""Feature matching: an image of a set whose representation is near that of another image.

Representation inversion (Engstrom et al., arXiv:1906.00945) used as an attack (Sabour et al.,
arXiv:1511.05122).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.threats.norms import PerturbationSet, per_row

Representation = Callable[[Tensor], Tensor]
"""Images [n, C, H, W] to representations [n, ...], each of its own image."""


def match_features(
    representation: Representation,
    x: Tensor,
    guide: Tensor,
    ball: PerturbationSet,
    steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """Points [n, ...] whose representation is near that of `guide`, and the distances by step.

    Projected gradient descent on 1/2 ||R(image) - R(guide)||^2 from the clean images x and towards
    the guides, both [n, C, H, W]. Each row has a step size of its own, which doubles after a step
    that comes nearer; another one is undone, and halves it. So the distances
    ||R(image) - R(guide)||_2, [steps + 1, n], never rise.
    """
    with torch.no_grad():
        wanted = representation(guide)
    points = ball.start(x)
    rate = torch.ones(len(x), device=x.device)
    loss, gradient = _loss_and_gradient(representation, points, x, wanted, ball)
    losses = [loss]
    for _ in range(steps):
        tried = ball.project(points - per_row(rate, points) * gradient, x)
        found, slope = _loss_and_gradient(representation, tried, x, wanted, ball)
        nearer = found < loss
        points = torch.where(per_row(nearer, points), tried, points)
        gradient = torch.where(per_row(nearer, points), slope, gradient)
        loss = torch.where(nearer, found, loss)
        rate = torch.where(nearer, 2 * rate, rate / 2)
        losses.append(loss)
    return points, (2 * torch.stack(losses)).sqrt()


def _loss_and_gradient(
    representation: Representation, points: Tensor, x: Tensor, wanted: Tensor, ball: PerturbationSet
) -> tuple[Tensor, Tensor]:
    """The loss [n] at points [n, ...] of images x [n, C, H, W], and its gradient [n, ...]."""
    with torch.enable_grad():
        leaf = points.detach().clone().requires_grad_()
        change = representation(ball.apply(leaf, x)) - wanted
        loss = 0.5 * change.flatten(1).square().sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient
