"""Tests of bench.engine.attack_view: what an attack writes into changes nothing but its copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.engine.runner import run_attack
from bench.plugin import Access, Attack, Problem, margin
from plugins.attacks.square import Square, State
from tests.engine.single_run import SingleRun, assert_same
from tests.fixtures.known_models import digits
from tests.fixtures.writing_plugins import WritingAttack, WritingExternal

TENSORS = ("x", "y", "target", "t", "restart", "clean_logits", "other_classes")


@pytest.mark.parametrize("where", [*TENSORS, "start", "queried", "answer", "label"])
def test_an_attack_that_writes_gets_the_verdicts_of_its_honest_counterpart(where: str) -> None:
    writing, honest = (WritingAttack(where, honest=honest) for honest in (False, True))
    assert_same(SingleRun(writing, count=40).run(), SingleRun(honest, count=40).run())


@pytest.mark.parametrize("where", ["x", "y", "target", "queried", "answer"])
def test_an_external_attack_that_writes_gets_the_verdicts_of_its_honest_counterpart(
    where: str,
) -> None:
    writing, honest = (cast(Attack, WritingExternal(where, honest=h)) for h in (False, True))
    assert_same(SingleRun(writing, count=40).run(), SingleRun(honest, count=40).run())


@dataclass(frozen=True)
class InPlaceSquare(Square):
    """Square that writes its next state into the one it was given, and into its answers."""

    def step(self, problem: Problem, state: State) -> State:
        """A step of Square; the given state and the last answers are overwritten."""
        after = super().step(problem, state)
        after = after._replace(adv=after.adv.clone(), margin=after.margin.clone())
        state.adv.zero_()
        state.margin.copy_(after.margin)
        return after


def test_a_state_that_is_overwritten_in_a_speculative_step_is_refused() -> None:
    plain = SingleRun(Square(steps=60), count=40).run()
    assert plain.calls < 60 * 2, "no step was speculative"
    with pytest.raises(PluginError, match=r"square.step wrote into the state"):
        SingleRun(InPlaceSquare(steps=60), count=40).run()


@dataclass(frozen=True)
class OverwritingSquare(Square):
    """Square that overwrites its answers and the images that it has queried."""

    def step(self, problem: Problem, state: State) -> State:
        """A step of Square on copies."""
        query = self.candidate(problem, state)
        given = query.clone()
        logits = problem.logits(given)
        found = margin(logits, problem.y)
        given.zero_()
        logits.zero_()
        better = (found > state.margin).view(-1, 1, 1, 1)
        adv = torch.where(better, query, state.adv)
        return state._replace(adv=adv, margin=torch.fmax(found, state.margin))


def test_answers_and_images_that_are_overwritten_change_no_speculative_step() -> None:
    one = SingleRun(OverwritingSquare(steps=60), count=40).run()
    assert_same(one, SingleRun(Square(steps=60), count=40).run())


@dataclass(frozen=True)
class Assigning:
    """An attack that replaces the labels of its problem."""

    name = "assigning"
    needs = Access.NOTHING
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        """The clean images."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Replace the labels."""
        problem.y = torch.zeros_like(problem.y)
        return adv


def test_the_tensors_of_a_problem_cannot_be_replaced() -> None:
    with pytest.raises(AttributeError, match="y"):
        SingleRun(Assigning(), count=10).run()


def test_clean_images_and_labels_are_those_that_were_loaded() -> None:
    run = SingleRun(WritingAttack("x", honest=False), count=40)
    spec = run.spec()
    list(run_attack(spec, run.referee(spec).confirm))
    x, y = digits(40)
    assert torch.equal(spec.x[:], x) and torch.equal(spec.y, y)
