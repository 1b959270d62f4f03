"""Plugins made by the tests of checks, and how one check is run on one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.contract.check import CheckResult
from bench.contract.runner import CHECKS, FIXTURES, run_check
from bench.plugin import Access, Defense, Loader, Problem, State, cross_entropy
from bench.registry.registration import Registration
from bench.registry.registry import Registry


def extended(registry: Registry, kind: str, value: Any, origin: str = "planted") -> Registry:
    """A copy of the registry in which a value is registered."""
    registration = Registration(value, origin, "planted", "0" * 64)
    changed: dict[str, Any] = {
        f"{kind}s": {**getattr(registry, f"{kind}s"), value.name: registration}
    }
    return replace(registry, **changed)


def run_named_check(
    registry: Registry, kind: str, value: Any, name: str, origin: str = "planted"
) -> CheckResult:
    """The result of the check `name` on a value that is registered under `kind` for it."""
    known = extended(registry, kind, value, origin)
    (check,) = (check for check in CHECKS[kind] if check.name == name)
    return run_check(kind, value.name, check, FIXTURES[kind](known, value))


def defense(build: Callable[[Loader], Any], **record: Any) -> Defense:
    """A defense named `planted`."""
    return Defense("planted", build, **record)


class Climb:
    """A correct attack of eight steps; subclasses replace one part by a faulty one."""

    name = "planted"
    needs = Access.GRADIENTS
    steps = 8

    def start(self, problem: Problem) -> State:
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, state: State) -> State:
        uphill = self.uphill(problem, state)
        return self.inside(problem, state + 0.25 * problem.ball.radius * uphill)

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.steepest(problem.gradient(adv, cross_entropy).gradient, adv)

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.project(adv, problem.x)


def gradient(problem: Problem, adv: Tensor) -> Tensor:
    return problem.gradient(adv, cross_entropy).gradient


class Wrapped(nn.Module):
    """A classifier inside a forward function that may be faulty."""

    def __init__(self, classifier: nn.Module, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.inner = copy.deepcopy(classifier)
        self.around = forward
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: Tensor) -> Any:
        return self.around(self, images)
