"""Helper: runs a function as an external attack against a model on the digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import BATCH_UNIT
from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, ExternalProblem
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import Referee
from bench.threats.access import Budget
from bench.threats.norms import Linf, PerturbationSet
from bench.threats.threat_model import Goal
from tests.fixtures.known_models import Result, digits, run_and_judge, small_cnn

EPS = Fraction(51, 255)


LINF = Linf(EPS)


FREE = Budget()


Run = Callable[[ExternalProblem], Any]


@dataclass
class FunctionAttack:
    """An external attack whose `run` is the given function."""

    function: Run
    needs: Access = Access.GRADIENTS
    rows: int = 64
    name: str = "external"
    source: str = ""
    minimises: bool = False

    def run(self, problem: ExternalProblem) -> Any:
        return self.function(problem)


def attack(run: Run, **options: Any) -> Attack:
    """The attack, typed as the registry returns it."""
    found: Attack = cast(Any, FunctionAttack(run, **options))
    return found


def input_gradient(problem: ExternalProblem, adv: Tensor) -> Tensor:
    """The gradient [n, C, H, W] of the cross-entropy, as a library would compute it."""
    leaf = adv.detach().clone().requires_grad_()
    loss = nn.functional.cross_entropy(problem.model(leaf), problem.y, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def sign_steps(problem: ExternalProblem, steps: int = 10) -> Tensor:
    """Sign steps [n, C, H, W] from a start drawn from the global generator."""
    x, radius = problem.x, problem.ball.radius
    adv = problem.ball.project(x + radius * (2 * torch.rand_like(x) - 1), x)
    for _ in range(steps):
        adv = problem.ball.project(adv + radius / 4 * input_gradient(problem, adv).sign(), x)
    return adv


class AlwaysRight(nn.Module):
    """Returns the label of the nearest digit, with a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(150)
        near = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        return nn.functional.one_hot(y[near], 10).float() * (5 + images.flatten(1).mean(1)[:, None])


def cell(
    runner: Attack,
    model: nn.Module | None = None,
    n: int = BATCH_UNIT,
    ball: PerturbationSet = LINF,
    **options: Any,
) -> CellSpec:
    """A cell over the first n digits; `options` replace fields of the spec."""
    model = model or small_cnn()
    x, y = digits(n)
    access = ModelAccess(model, noise=options.get("noise"))
    clean = ModelAccess(small_cnn() if options.get("noise") else model).logits(x)
    spec = CellSpec(
        attack=runner, model_access=access, defense=access, ball=ball, goal=Goal(), budget=FREE,
        x=x, y=y, target=torch.full_like(y, -1), clean_logits=clean,
        reached_on_clean=clean.argmax(1) != y, seed=0,
    )  # fmt: skip
    return replace(spec, **options)


def referee(spec: CellSpec) -> Referee:
    random = spec.noise is not None
    judging, fresh = (noise(role) if random else None for role in ("judge", "confirm"))
    fresh_model = FreshModel(copy.deepcopy(spec.defense.module), noise=judging)
    return Referee(
        fresh_model, spec.ball, spec.goal, spec.x, spec.y, spec.target, confirmation_noise=fresh
    )


def noise(role: str) -> SeededNoise:
    return SeededNoise(0, role, torch.device("cpu"))


def run_cell(spec: CellSpec, **options: Any) -> Candidates:
    """All candidates, in item order."""
    parts = list(run_attack(spec, referee(spec).confirm, **options))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = joined[0].argsort()
    return Candidates(*(column[order] for column in joined))


def run_on_small_cnn(
    run: Run, n: int = BATCH_UNIT, budget: Budget = FREE, **options: Any
) -> Result:
    """The judged result of a run against the small CNN."""
    return run_and_judge(attack(run, **options), small_cnn(), *digits(n), LINF, budget=budget)


def counting_hooks(model: nn.Module) -> dict[str, int]:
    """Counts the rows that pass the model, with hooks."""
    rows = {"forward": 0, "backward": 0}

    def add(name: str, answer: Any) -> None:
        rows[name] += len(answer)

    model.register_forward_hook(lambda _, __, out: add("forward", out))
    model.register_full_backward_hook(lambda _, __, out: add("backward", *out))
    return rows


def same(one: Candidates, two: Candidates) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
