"""Tests of bench.engine.values: what a plugin passes is named, with what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.cells import Culprit
from bench.core.errors import PluginError
from bench.core.outcomes import Verdict
from bench.engine.values import checked_column, checked_points, checked_state
from bench.evaluation.failures import failure_of
from bench.plugin import Access, Problem, StopRule, cross_entropy
from tests.engine.single_run import SingleRun

X = torch.zeros(4, 1, 2, 2)


class State(NamedTuple):
    """A state with a count for each row."""

    adv: Any
    count: Any


BAD_IMAGES: list[tuple[Any, str, str]] = [
    (X.double(), "torch.float64 [4, 1, 2, 2]", ".to(problem.x)"),
    (X.half(), "torch.float16 [4, 1, 2, 2]", ".to(problem.x)"),
    (X.to(torch.uint8), "torch.uint8 [4, 1, 2, 2]", ".to(problem.x)"),
    (X.to("meta"), "torch.float32 [4, 1, 2, 2] on meta", ".to(problem.x)"),
    (X[:3], "torch.float32 [3, 1, 2, 2]", "one row for each row"),
    (X.flatten(1), "torch.float32 [4, 4]", "one row for each row"),
    (X[0], "torch.float32 [1, 2, 2]", "one row for each row"),
    (X.numpy(), "a numpy array float32 [4, 1, 2, 2]", "torch.as_tensor"),
    (X.double().numpy(), "a numpy array float64 [4, 1, 2, 2]", "torch.as_tensor"),
    (None, "None", "return a tensor"),
    ([X], "a value of type list", "torch.as_tensor"),
    (3.0, "a value of type float", "torch.as_tensor"),
]


@pytest.mark.parametrize(("images", "came", "remedy"), BAD_IMAGES)
def test_images_of_another_kind_are_refused_in_one_sentence(
    images: Any, came: str, remedy: str
) -> None:
    with pytest.raises(PluginError) as error:
        checked_points(images, X, "pgd.step returned")
    sentence = str(error.value)
    assert sentence.startswith(f"pgd.step returned {came}; images torch.float32 [4, 1, 2, 2] were")
    assert remedy in sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_images_like_the_clean_ones_are_returned_as_they_are() -> None:
    images = X.clone()
    assert checked_points(images, X, "pgd.step returned") is images
    state = State(images, torch.zeros(4))
    assert checked_state(state, X, "pgd.step") is state
    assert checked_state(images, X, "pgd.step") is images


BAD_STATES: list[tuple[Any, str]] = [
    (State(X[:3], torch.zeros(4)), "adv = torch.float32 [3, 1, 2, 2]"),
    (State(X, torch.zeros(3)), "count = torch.float32 [3]"),
    (State(X, torch.zeros(())), "count = torch.float32 []"),
    (State(X, 7), "count = a value of type int"),
    (State(X, np.zeros(4)), "count = a numpy array float64 [4]"),
    (State(None, torch.zeros(4)), "adv = None"),
    (State(X.double(), torch.zeros(4)), "adv = torch.float64"),
    ((X, torch.zeros(4)), "a value of type tuple"),
    (None, "None"),
]


@pytest.mark.parametrize(("state", "came"), BAD_STATES)
def test_states_of_another_kind_are_refused(state: Any, came: str) -> None:
    with pytest.raises(PluginError, match=f"pgd.step returned .*{re.escape(came)}"):
        checked_state(state, X, "pgd.step")


@pytest.mark.parametrize(
    ("value", "dtype", "came"),
    [
        (torch.ones(3, dtype=torch.bool), torch.bool, r"torch.bool \[3\]"),
        (torch.ones(4), torch.bool, r"torch.float32 \[4\]"),
        (True, torch.bool, "a value of type bool"),
        (torch.ones(4, dtype=torch.int64), None, r"torch.int64 \[4\]"),
        (torch.ones(()), None, r"torch.float32 \[\]"),
        (None, None, "None"),
    ],
)
def test_columns_of_another_kind_are_refused(
    value: Any, dtype: torch.dtype | None, came: str
) -> None:
    with pytest.raises(PluginError, match=f"pgd.done returned {came}; .* \\[4\\] was expected"):
        checked_column(value, 4, "pgd.done returned", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_of_any_precision_is_a_column(dtype: torch.dtype) -> None:
    loss: Tensor = torch.ones(4, dtype=dtype)
    assert checked_column(loss, 4, "the loss is", None) is loss


@dataclass
class Draft:
    """A first draft of an attack: each part is a function that may return anything."""

    begin: Callable[[Problem], Any] = lambda problem: problem.x
    move: Callable[[Problem, Any], Any] = lambda problem, adv: adv
    converged: Callable[[Any], Any] = lambda adv: torch.ones(len(adv), dtype=torch.bool)
    restarts: Any = 1
    stop_rule: StopRule = StopRule.FIRST_SUCCESS
    name = "draft"
    needs = Access.GRADIENTS
    steps = 2

    def start(self, problem: Problem) -> Any:
        return self.begin(problem)

    def step(self, problem: Problem, adv: Any) -> Any:
        return self.move(problem, adv)

    def done(self, adv: Any) -> Any:
        return self.converged(adv)

    def restart_count(self, classes: int) -> Any:
        return self.restarts


VALUES: list[Callable[[Tensor], Any]] = [
    lambda adv: adv.double(),
    lambda adv: (255 * adv).to(torch.uint8),
    lambda adv: adv[:-1],
    lambda adv: adv.numpy(),
    lambda adv: None,
    lambda adv: adv.to("meta"),
    lambda adv: (adv, adv),
    lambda adv: adv.mean(),
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("part", ["begin", "move", "queried"])
def test_an_attack_is_at_fault_for_a_value_that_cannot_be_used(
    part: str, value: Callable[[Tensor], Any]
) -> None:
    if part == "begin":
        attack, words = Draft(begin=lambda problem: value(problem.x)), "draft.start returned"
    elif part == "move":
        attack, words = Draft(move=lambda _, adv: value(adv)), "draft.step returned"
    else:
        attack = Draft(move=lambda problem, adv: problem.gradient(value(adv), cross_entropy))
        words = "draft queried"
    with pytest.raises(PluginError, match=words) as error:
        SingleRun(attack, count=8).run()
    failure = failure_of(error.value)
    assert failure.culprit is Culprit.PLUGIN and "expected" in failure.reason


CALLS: list[tuple[Draft, str]] = [
    (Draft(converged=lambda adv: adv, stop_rule=StopRule.CONVERGENCE), "draft.done returned"),
    (Draft(converged=lambda adv: True, stop_rule=StopRule.CONVERGENCE), "draft.done returned"),
    (Draft(converged=lambda adv: None, stop_rule=StopRule.CONVERGENCE), "draft.done returned N"),
    (Draft(restarts=None), "draft.restart_count returned no number"),
    (Draft(restarts="many"), "draft.restart_count returned no number"),
    (Draft(restarts=0), "declares 0 restarts"),
    (
        Draft(move=lambda p, adv: p.gradient(adv, lambda z, y: z.mean()).gradient),
        r"the loss of .* is torch.float32 \[\]; floating-point numbers \[(8|32)\]",
    ),
    (
        Draft(move=lambda p, adv: p.gradient(adv, lambda z, y: z.argmax(1)).gradient),
        r"the loss of .* is torch.int64 \[(8|32)\]",
    ),
    (
        Draft(move=lambda p, adv: p.gradient(adv, cross_entropy, p.y).gradient),
        r"draft queried where = torch.int64 \[(8|32)\]",
    ),
    (
        Draft(move=lambda p, adv: p.jacobian(adv, p.y).rows[:, 0]),
        r"gradients of torch.int64 \[(8|32)\]; class numbers torch.int64 \[(8|32), k\]",
    ),
    (
        Draft(move=lambda p, adv: p.jacobian(adv, p.y[:, None].float()).rows[:, 0]),
        r"gradients of torch.float32 \[(8|32), 1\]",
    ),
]


@pytest.mark.parametrize(("attack", "words"), CALLS)
def test_an_attack_is_at_fault_for_calls_that_cannot_be_answered(attack: Draft, words: str) -> None:
    with pytest.raises(PluginError, match=words) as error:
        SingleRun(attack, count=8).run()
    assert failure_of(error.value).culprit is Culprit.PLUGIN


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_images_that_are_not_finite_are_refused_one_by_one(value: float) -> None:
    def spoil(problem: Problem, adv: Tensor) -> Tensor:
        return adv.index_fill(3, torch.tensor([0]), value)

    outcomes = SingleRun(Draft(move=spoil), count=8).run().outcomes
    reached_on_clean = outcomes.verdict == Verdict.BROKEN
    assert (outcomes.verdict[~reached_on_clean] == Verdict.NOT_FINITE).all()
    assert (~reached_on_clean).sum() >= 7
