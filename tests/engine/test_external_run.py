"""Tests of bench.engine.external_run: only the engine ends the run of an external attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.external_model import AttackStopped
from bench.engine.problem import BATCH_UNIT
from bench.plugin import ExternalProblem
from bench.threats.access import Budget
from tests.engine.external_cell import (
    AlwaysRight,
    FunctionAttack,
    attack,
    cell,
    noise,
    run_cell,
    same,
    sign_steps,
)
from tests.fixtures.known_models import small_cnn


class StopsTheRun(nn.Module):
    """Answers `calls` times, then raises the engine's AttackStopped."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.body, self.left = small_cnn(), calls

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise AttackStopped
        answer: Tensor = self.body(images)
        return answer


class StopInBackward(torch.autograd.Function):
    """The identity, which raises AttackStopped in the backward pass."""

    @staticmethod
    def forward(ctx: object, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: object, *slope: Tensor) -> Tensor:
        raise AttackStopped


class StopsInBackward(nn.Module):
    """A network that raises AttackStopped when its gradient is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_cnn()

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = StopInBackward.apply(self.body(images))
        return answer


# The clean images are queried once before the run begins.
@pytest.mark.parametrize(
    "defense", [lambda: StopsTheRun(1), lambda: StopsTheRun(3), StopsInBackward],
    ids=["at the first query", "at the third query", "in the backward pass"],
)  # fmt: skip
def test_a_defense_that_raises_attack_stopped_is_a_plugin_error(
    defense: Callable[[], nn.Module],
) -> None:
    with pytest.raises(
        PluginError, match=r"external was stopped .* test_external_run\.py, line \d+"
    ):
        run_cell(cell(attack(sign_steps), defense()))


def test_an_attack_that_raises_attack_stopped_is_a_plugin_error() -> None:
    def quitting(problem: ExternalProblem) -> Tensor:
        raise AttackStopped

    with pytest.raises(
        PluginError, match=r"external was stopped .* although neither its budget was spent"
    ):
        run_cell(cell(attack(quitting)))


def test_a_run_ends_when_its_budget_is_spent() -> None:
    found = run_cell(
        cell(attack(lambda problem: sign_steps(problem, 40)), budget=Budget(queries=3))
    )
    assert int(found.forwards.max()) == 3


def test_attack_stopped_may_be_caught_and_raised_again_after_the_budget_is_spent() -> None:
    def late(problem: ExternalProblem) -> Tensor:
        kept: list[AttackStopped] = []
        while not kept:
            try:
                problem.model(problem.x)
            except AttackStopped as stop:
                kept.append(stop)
        raise kept[0]

    found = run_cell(cell(attack(late), budget=Budget(queries=3)))
    assert int(found.forwards.max()) == 3


class NoisyModel(nn.Module):
    """The small CNN behind Gaussian noise from the global generator."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = small_cnn()(images + 0.05 * torch.randn_like(images))
        return logits


@pytest.mark.parametrize("rows", [64, 1, 0, 32, 48, 100])
@pytest.mark.parametrize("shaken", [False, True], ids=["", "declared random"])
def test_results_depend_on_seed_and_batch_size_alone(rows: int, shaken: bool) -> None:
    def spec(seed: int = 0, slots: int = 64) -> CellSpec:
        runner = attack(lambda problem: sign_steps(problem, 3), rows=rows)
        if not shaken:
            return cell(runner, n=n, seed=seed, slots=slots)
        return cell(runner, NoisyModel(), n=n, seed=seed, slots=slots, noise=noise("play"))

    n = 80 if rows == 1 else 150
    begun = max(rows, 64) if not shaken or rows <= 64 else 128
    first = run_cell(spec())
    assert same(first, run_cell(spec(slots=128), order=list(range(n))[::-1]))
    assert not torch.equal(first.image, run_cell(spec(seed=1)).image)
    head: Sequence[int] = first.item[:0].tolist() if rows == 0 else range(begun)
    rest = run_cell(spec(), finished=head)
    assert rest.item.tolist() == list(range(len(head), n))
    assert same(Candidates(*(column[len(head) :] for column in first)), rest)


def test_random_draws_during_prepare_do_not_change_results() -> None:
    @dataclass
    class Prepared(FunctionAttack):
        draws: int = 0

        def prepare(self) -> None:
            torch.rand(self.draws)

    one: Any = Prepared(sign_steps)
    two: Any = Prepared(sign_steps, draws=7)
    assert same(run_cell(cell(one)), run_cell(cell(two)))


def test_misclassified_clean_images_are_not_attacked() -> None:
    seen: list[Tensor] = []

    def run(problem: ExternalProblem) -> Tensor:
        seen.append(problem.y)
        return problem.x

    lost = torch.arange(BATCH_UNIT) % 3 == 0
    spec = cell(attack(run), AlwaysRight(), reached_on_clean=lost)
    found = run_cell(spec)
    assert torch.equal(seen[0][: int((~lost).sum())], spec.y[~lost])
    assert torch.equal(found.final_checks == 0, lost) and (found.forwards == 0).all()
