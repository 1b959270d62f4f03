"""Joint PGD: attacks a classifier together with the detector that rejects images for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Loss, Problem, hookimpl, margin


@dataclass(frozen=True)
class JointPGD:
    """PGD on max_{j != y} z_j - z_y while the label is right, and on -score while it is wrong.

    A detector is evaluated only by attacks on the classifier and the detector together (Carlini and
    Wagner 2017, arXiv:1705.07263). Each row ascends one of the two losses at a time, so their
    scales need no weights, and a step that makes the label right again is followed by one that
    makes it wrong (arXiv:2106.15023).
    """

    name = "joint-pgd"
    written_for = ("detector-binary", "detector-lid", "safetynet")
    needs = Access.GRADIENTS
    goals = ("untargeted",)
    joint = True
    cite = "arXiv:1705.07263"
    summary = "Projected gradient ascent on classifier and detector together."

    steps: int = 100
    rate: float = 0.2
    """First step size, in radii; it falls linearly to zero, because the two goals conflict."""
    restarts: int = 5

    def restart_count(self, classes: int) -> int:
        """The number of restarts."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """Random points of the set [n, C, H, W]."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step on the loss of the goal that is not reached, projected; [n, C, H, W]."""
        gradient = problem.gradient(adv, joint_loss(problem.classes)).gradient
        rate = self.rate * (1 - problem.t / self.steps)
        return problem.ball.ascend(adv, gradient, rate, problem.x)


def joint_loss(classes: int) -> Loss:
    """A loss (output [n, K + 1], label) -> [n]: the margin where it is not positive, else -score.

    For a defense without a detector, whose output is [n, K], the margin.
    """

    def loss(output: Tensor, label: Tensor) -> Tensor:
        """The loss [n] of the output [n, K + 1] or [n, K]."""
        gap = margin(output[:, :classes], label)
        if output.shape[1] == classes:
            return gap
        return torch.where(gap > 0, -output[:, classes], gap)

    return loss


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with a hundred steps from each of five random starts."""
    yield JointPGD()
