"""Broken attacks of the first list."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.plugin import Access, Problem, State, StopRule, cross_entropy
from tests.planted.cases import Case, broken_attack


class Climb:
    """Twelve steps of PGD; each planted attack replaces one part by a faulty one."""

    needs = Access.GRADIENTS
    steps = 12
    name = ""

    def __init__(self, name: str) -> None:
        self.name = f"planted-{name}"

    def start(self, problem: Problem) -> State:
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, state: State) -> State:
        gradient = problem.gradient(state, cross_entropy).gradient
        return self.inside(
            problem, state + 0.25 * problem.ball.radius * self.uphill(problem, gradient, state)
        )

    def uphill(self, problem: Problem, gradient: Tensor, adv: Tensor) -> Tensor:
        return problem.ball.steepest(gradient, adv)

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.project(adv, problem.x)


class Farther(Climb):
    """Its radius is twice the allowed one."""

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        radius = 2 * problem.ball.radius
        return (problem.x + (adv - problem.x).clamp(-radius, radius)).clamp(0, 1)


class OutsideTheBox(Climb):
    """Pixels below 0 and above 1."""

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        radius = problem.ball.radius
        return problem.x + (adv - problem.x).clamp(-radius, radius)


class NotANumber(Climb):
    """One pixel is not a number."""

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        found = problem.ball.project(adv, problem.x).clone()
        found[:, :, 0, 0] = torch.nan
        return found


class OtherImages(Climb):
    """Images of other examples of the batch."""

    def step(self, problem: Problem, state: State) -> State:
        return problem.x.roll(1, 0)


class SwapsLabels(Climb):
    """Writes other labels into the problem."""

    def step(self, problem: Problem, state: State) -> State:
        problem.y.copy_((problem.y + 1) % problem.classes)
        return super().step(problem, state)


class SwapsImages(Climb):
    """Writes other images into the problem, around which the ball then lies."""

    def step(self, problem: Problem, state: State) -> State:
        problem.x.copy_(problem.x.roll(1, 0))
        return problem.x.clone()


class BatchScaled(Climb):
    """Divides the gradient by its mean over the batch (the step depends on other examples)."""

    def uphill(self, problem: Problem, gradient: Tensor, adv: Tensor) -> Tensor:
        return 0.4 * gradient / (gradient.abs().mean() + 1e-9)


class ClaimsSuccess(Climb):
    """Stops at once and offers the clean image."""

    stop_rule = StopRule.CONVERGENCE

    def step(self, problem: Problem, state: State) -> State:
        return problem.x.clone()

    def done(self, state: State) -> Tensor:
        return torch.ones(len(state), dtype=torch.bool)


class TakesGradients(Climb):
    """Asks for gradients although it declares labels only."""

    needs = Access.LABELS


class AsksTooOften(Climb):
    """Asks 5,000 times an image where 1,000 are allowed."""

    needs = Access.LABELS
    steps = 5000

    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def step(self, problem: Problem, state: State) -> State:
        noise = problem.uniform("noise", tuple(problem.x.shape[1:])) - 0.5
        adv = problem.ball.project(problem.x + noise, problem.x)
        wrong = problem.labels(adv) != problem.y
        return torch.where(wrong[:, None, None, None], adv, state)


class WrongType(Climb):
    """Returns float64 images."""

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return super().inside(problem, adv).double()


class OneRowLess(Climb):
    """Returns one image less."""

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return super().inside(problem, adv)[1:]


class WritesWeights(Climb):
    """Writes into the weights of the model."""

    def step(self, problem: Any, state: State) -> State:
        for weight in problem.model_access.module.parameters():
            weight.data.zero_()
        return super().step(problem, state)


ATTACKS: tuple[Case, ...] = (
    broken_attack(Farther("farther"), "outside the set", "uses twice the radius"),
    broken_attack(OutsideTheBox("outside-the-box"), "outside the set", "leaves [0, 1]"),
    broken_attack(NotANumber("not-a-number"), "not finite", "returns NaN pixels"),
    broken_attack(OtherImages("other-images"), "other images", "returns other test images"),
    broken_attack(SwapsLabels("swaps-labels"), "writes into the problem", "writes other labels"),
    broken_attack(SwapsImages("swaps-images"), "writes into the problem", "writes other images"),
    broken_attack(
        BatchScaled("batch-scaled"), "depends on the batch",
        "its step depends on the other examples", weakens=True,
    ),
    broken_attack(ClaimsSuccess("claims-success"), "claims", "stops at once with the clean image"),
    broken_attack(TakesGradients("takes-gradients"), "access", "gradients with labels access"),
    broken_attack(
        AsksTooOften("asks-too-often"), "access", "five times the allowed queries",
        threat="digits-labels",
    ),
    broken_attack(WrongType("wrong-type"), "return value", "returns float64 images"),
    broken_attack(OneRowLess("one-row-less"), "return value", "returns one image less"),
    broken_attack(WritesWeights("writes-weights"), "writes into the problem", "zeroes the weights"),
)  # fmt: skip
