"""Who may end a run of its own: the harness, and nobody in its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.engine.external_model import AttackStopped
from bench.plugin import ExternalProblem
from bench.threats.access import Budget
from tests.engine.test_external_model import attack, cell, climb, played
from tests.fixtures.known_models import small_cnn


class Stopping(nn.Module):
    """Answers `calls` times, then says in the harness's words that the run is over."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.body, self.left = small_cnn(), calls

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise AttackStopped
        answer: Tensor = self.body(images)
        return answer


class StoppingBackwards(torch.autograd.Function):
    """The identity, whose slope is no slope but the end of the run."""

    @staticmethod
    def forward(ctx: object, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: object, *slope: Tensor) -> Tensor:
        raise AttackStopped


class Sloping(nn.Module):
    """A network that ends the run as soon as its gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_cnn()

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = StoppingBackwards.apply(self.body(images))
        return answer


# The clean pass asks once before the run begins.
@pytest.mark.parametrize(
    "defense", [lambda: Stopping(1), lambda: Stopping(3), Sloping],
    ids=["at the first question", "at the third", "in the backward pass"],
)  # fmt: skip
def test_a_defense_cannot_end_the_run(defense: Callable[[], nn.Module]) -> None:
    with pytest.raises(PluginError, match=r"whole was stopped .* test_external_run\.py, line \d+"):
        played(cell(attack(climb), defense()))


def test_an_attack_cannot_end_its_run_in_the_harness_name() -> None:
    def quitting(problem: ExternalProblem) -> Tensor:
        raise AttackStopped

    with pytest.raises(PluginError, match=r"whole was stopped .* though nothing was spent or won"):
        played(cell(attack(quitting)))


def test_a_run_that_the_harness_stopped_is_over() -> None:
    found = played(cell(attack(lambda problem: climb(problem, 40)), budget=Budget(queries=3)))
    assert int(found.forwards.max()) == 3


def test_a_stop_that_a_library_kept_and_raises_again_is_the_harness_own() -> None:
    def late(problem: ExternalProblem) -> Tensor:
        kept: list[AttackStopped] = []
        while not kept:
            try:
                problem.model(problem.x)
            except AttackStopped as stop:
                kept.append(stop)
        raise kept[0]

    found = played(cell(attack(late), budget=Budget(queries=3)))
    assert int(found.forwards.max()) == 3
