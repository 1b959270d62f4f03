"""Tests of bench.engine.external_run: only the engine ends the run of an external attack.

Covers bench.engine.external_tracker too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.external_model import AttackStopped
from bench.plugin import ExternalProblem
from bench.threats.access import Budget
from tests.engine.test_external_model import attack, cell, run_cell, sign_steps
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
