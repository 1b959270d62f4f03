"""Joint PGD: fool the classifier and, where it is fooled, the detector that guards it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Loss, Problem, hookimpl, margin


@dataclass(frozen=True)
class JointPGD:
    """PGD on max_{j != y} z_j - z_y while the answer is right, on -score while it is wrong.

    A detector is no defense that is not attacked along with its classifier (arXiv:1705.07263).
    Each row climbs one of the two at a time (arXiv:2106.15023): their scales never meet, and a
    step that makes the answer right again is followed by one that makes it wrong.
    """

    name = "joint-pgd"
    needs = Access.GRADIENTS
    goals = ("untargeted",)
    joint = True
    cite = "arXiv:1705.07263"
    summary = "Projected gradient ascent that goes for classifier and detector at once."

    steps: int = 100
    rate: float = 0.2
    """First step length, in radii; it falls linearly to zero, for the two goals pull apart."""
    restarts: int = 5

    def restart_count(self, classes: int) -> int:
        """Each restart is a run."""
        return self.restarts

    def start(self, problem: Problem) -> Tensor:
        """A random point of the set."""
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """One step towards the goal that is missed, back into the ball."""
        uphill = problem.gradient(adv, joint_loss(problem.classes)).gradient
        rate = self.rate * (1 - problem.t / self.steps)
        return problem.ball.ascend(adv, uphill, rate, problem.x)


def joint_loss(classes: int) -> Loss:
    """(answer [n, K + 1], label) -> [n]: the margin where it is not positive, else -score.

    Of a defense without a detector, which answers [n, K], the margin.
    """

    def loss(answer: Tensor, label: Tensor) -> Tensor:
        gap = margin(answer[:, :classes], label)
        if answer.shape[1] == classes:
            return gap
        return torch.where(gap > 0, -answer[:, classes], gap)

    return loss


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """A hundred steps from each of five starts."""
    yield JointPGD()
