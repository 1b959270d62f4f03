"""A printable pattern on a region, for many views: glasses and stickers.

Sharif et al. 2016 (doi:10.1145/2976749.2978392), Eykholt et al. 2018 (arXiv:1707.08945).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    Loss,
    MaskedPattern,
    SharedAttack,
    SharedProblem,
    cross_entropy,
    hookimpl,
)
from plugins.attacks.shared_gradient import capped_cross_entropy


def total_variation(colours: Tensor, mask: Tensor) -> Tensor:
    """The mean absolute difference [n] of neighbours in a mask [H, W].

    Of patterns [n, C, H, W]; it is zero for a constant colour.
    """
    down = (colours[:, :, 1:] - colours[:, :, :-1]).abs() * (mask[1:] & mask[:-1])
    right = (colours[:, :, :, 1:] - colours[:, :, :, :-1]).abs() * (mask[:, 1:] & mask[:, :-1])
    return (down.flatten(1).sum(1) + right.flatten(1).sum(1)) / mask.sum()


def non_printability(colours: Tensor, mask: Tensor, printable: Tensor) -> Tensor:
    """The mean product [n] of distances to printable colours [k, C], over a mask [H, W].

    Of patterns [n, C, H, W]; it is zero where every colour in the mask is printable.
    """
    distance = torch.ones_like(colours[:, 0])
    for one in printable:
        distance = distance * torch.linalg.vector_norm(colours - one[:, None, None], dim=1)
    return (distance * mask).flatten(1).sum(1) / mask.sum()


@dataclass(frozen=True)
class PrintedPattern:
    """Projected ascent of one printed pattern on the mean loss of views, less terms for printing.

    The mean is over views and, under a nuisance, over its draws (EOT). The terms are total
    variation, non-printability and the mean absolute contrast, each with a weight.
    """

    name = "printed-pattern"
    needs = Access.GRADIENTS
    norms = ("masked-pattern",)
    goals = ("untargeted",)
    cite = "arXiv:1707.08945"
    summary = "One smooth, printable pattern on a region, for all views."

    epochs: int = 20
    batch: int = 128
    rate: float = 0.1
    """Length of the first step in radii; the steps shrink linearly to zero."""
    ceiling: float = 5.0
    target: int = -1
    """The class that views shall get; -1: any but the one that the model predicts for them."""
    variation: float = 0.0005
    """Weight of total variation."""
    printability: float = 0.005
    """Weight of non-printability."""
    contrast: float = 0.0
    """Weight of the mean absolute value of the point in the region."""
    levels: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Printable values of a channel; printable colours are all their combinations."""

    def fit(self, problem: SharedProblem) -> Tensor:
        """Ascend from a random pattern."""
        x = problem.rows(problem.order(0)[:1]).x
        point = problem.ball.sample(x, problem.draws)
        steps, done = self.epochs * -(-problem.count // self.batch), 0
        for epoch in range(self.epochs):
            for index in torch.split(problem.order(epoch), self.batch):
                done += 1
                rows = problem.rows(index, done)
                points = point.expand(len(index), *point.shape[1:])
                found = rows.gradient(points, self._loss(rows.clean_logits.argmax(1)))
                gradient = found.gradient.mean(0, keepdim=True) - self._cost_gradient(
                    problem.ball, point, x
                )
                rate = self.rate * (1 - (done - 1) / steps)
                point = problem.ball.ascend(point, gradient, rate, x)
        return point

    def _loss(self, label: Tensor) -> Loss:
        """What is raised for views that are predicted as `label` [n] when clean."""
        if self.target < 0:
            return capped_cross_entropy(label, self.ceiling)

        def loss(logits: Tensor, truth: Tensor) -> Tensor:
            return -cross_entropy(logits, torch.full_like(label, self.target))

        return loss

    def _cost_gradient(self, ball: object, point: Tensor, x: Tensor) -> Tensor:
        """The gradient of the weighted terms at a point, [1, C, H, W], as x."""
        assert isinstance(ball, MaskedPattern)
        leaf = point.detach().clone().requires_grad_()
        mask = ball.mask(x)
        with torch.enable_grad():
            torch.autograd.backward(self.cost(ball.colours(leaf), mask).sum())
        assert leaf.grad is not None
        return leaf.grad

    def cost(self, colours: Tensor, mask: Tensor) -> Tensor:
        """The weighted terms [n] of patterns [n, C, H, W] in [0, 1] on a mask [H, W]."""
        channels = colours.shape[1]
        printable = torch.tensor([*product(self.levels, repeat=channels)]).to(colours)
        contrast = ((2 * colours - 1).abs() * mask).flatten(1).sum(1) / mask.sum()
        return (
            self.variation * total_variation(colours, mask)
            + self.printability * non_printability(colours, mask, printable)
            + self.contrast * contrast
        )


@hookimpl
def bench_attacks() -> Iterator[SharedAttack]:
    """Register the attack with the weights that leave most of the success."""
    yield PrintedPattern()
