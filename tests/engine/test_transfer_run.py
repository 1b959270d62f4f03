"""Transfer attacks whose iterates serve several defenses: equal outcomes, no step made twice."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Outcomes, Verdict
from bench.engine.cell_spec import CellSpec
from bench.engine.runner import run_attack
from bench.engine.surrogate_iterates import SurrogateIterates
from bench.engine.transfer_run import can_share_iterates
from bench.plugin import Attack, Budget, StopRule
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import judge
from bench.threats.threat_model import Goal
from plugins.attacks.pgd import PGD
from plugins.attacks.transfer import Transfer, TransferBank
from tests.engine.single_run import CountingModel, NoisyModel, SingleRun
from tests.fixtures.known_models import digits, small_cnn

BANK = TransferBank("bank", "standard", restarts=3, steps=6)


class Converging(Transfer):
    """PGD on the surrogate that may end before its last step."""

    stop_rule = StopRule.CONVERGENCE

    def done(self, adv: Tensor) -> Tensor:
        """No row has converged, [n] bool."""
        return torch.zeros(len(adv), dtype=torch.bool)


@functools.cache
def least_squares() -> nn.Module:
    """The linear classifier with the least squared error on the first 150 digits."""
    x, y = digits(150)
    rows = torch.cat([x.flatten(1), torch.ones(150, 1)], 1).double()
    weight = torch.linalg.lstsq(rows, nn.functional.one_hot(y, 10).double(), driver="gelsd")
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(weight.solution[:64].T)
        layer.bias.copy_(weight.solution[64])
    return nn.Sequential(nn.Flatten(), layer)


def outcomes(run: SingleRun, spec: CellSpec, finished: tuple[int, ...] = ()) -> Outcomes:
    """The judged outcomes of a cell, in item order."""
    referee = run.referee(spec)
    clean = FreshModel(copy.deepcopy(run.model or small_cnn())).answer(
        spec.x, range(-(-len(spec.x) // 64))
    )
    chunks = judge(run_attack(spec, referee.confirm, finished=finished), referee, clean)
    found = Outcomes.concatenate([chunk.outcomes for chunk in chunks])
    order = found.item.argsort()
    return Outcomes._make(column[order] for column in found)


def assert_equal(one: Outcomes, two: Outcomes) -> None:
    for name in Outcomes._fields:
        first, second = getattr(one, name), getattr(two, name)
        assert np.array_equal(first, second, equal_nan=first.dtype.kind == "f"), name


@pytest.mark.parametrize("slots", [32, 64, 256])
@pytest.mark.parametrize("attack", [Transfer(steps=8), BANK], ids=lambda a: a.name)
def test_outcomes_are_those_of_a_run_of_its_own(attack: Attack, slots: int) -> None:
    """Against two defenses, one after the other, with the iterates of the first for the second."""
    iterates, surrogate = SurrogateIterates(), least_squares()
    for model in (small_cnn(), least_squares()):
        run = SingleRun(attack, model=model, source=surrogate)
        alone = outcomes(run, run.spec(slots))
        shared = outcomes(run, replace(run.spec(slots), iterates=iterates))
        assert_equal(shared, alone)
        assert (alone.verdict == Verdict.BROKEN).any()
        assert (alone.verdict == Verdict.ROBUST).any() == (model is not surrogate)
    assert len(iterates) > 100


@pytest.mark.parametrize("sigma", [0.05, 0.3])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_random_defense_answers_with_the_draws_of_a_run_of_its_own(
    restarts: int, sigma: float
) -> None:
    """Right: equal outcomes, and a whole noise group in each chunk, also with finished items."""
    attack, iterates = replace(BANK, restarts=restarts), SurrogateIterates()
    run = SingleRun(attack, model=NoisyModel(sigma), source=least_squares(), random=True)
    alone = outcomes(run, run.spec())
    assert_equal(outcomes(run, replace(run.spec(), iterates=iterates)), alone)
    spec = replace(run.spec(), iterates=iterates)
    parts = list(run_attack(spec, run.referee(spec).confirm, finished=range(64)))
    assert [sorted(part.item.tolist()) for part in parts] == [
        list(range(64, 128)), list(range(128, 150)),
    ]  # fmt: skip


def test_the_surrogate_is_queried_for_the_first_defense_only() -> None:
    surrogate, iterates = CountingModel(), SurrogateIterates()
    rows = []
    for model in (small_cnn(), small_cnn()):
        run = SingleRun(replace(BANK, restarts=1), model=model, source=surrogate)
        surrogate.rows.clear()
        outcomes(run, replace(run.spec(), iterates=iterates))
        rows.append(sum(surrogate.rows))
    assert rows[0] >= 6 * 140 and rows[1] == 0


def test_items_that_are_finished_are_not_run_and_missing_iterates_are_made() -> None:
    run, iterates = SingleRun(BANK, model=small_cnn(), source=least_squares()), SurrogateIterates()
    whole = outcomes(run, run.spec())
    first = outcomes(run, replace(run.spec(), iterates=iterates), finished=tuple(range(100)))
    assert first.item.tolist() == list(range(100, 150))
    rest = outcomes(run, replace(run.spec(), iterates=iterates))
    assert_equal(rest, whole)


def test_iterates_beyond_the_room_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right: with room for ten images the outcomes are the same."""
    monkeypatch.setattr("bench.engine.surrogate_iterates.KEPT_BYTES", 10 * 64 * 4)
    run, iterates = SingleRun(BANK, model=small_cnn(), source=least_squares()), SurrogateIterates()
    whole = outcomes(run, run.spec())
    for _ in range(2):
        assert_equal(outcomes(run, replace(run.spec(), iterates=iterates)), whole)
        assert len(iterates) == 10


@pytest.mark.parametrize(
    ("run", "shares"),
    [
        (SingleRun(BANK), True),
        (SingleRun(PGD()), False),
        (SingleRun(BANK, random=True), True),
        (SingleRun(BANK, budget=Budget(queries=10)), False),
        (SingleRun(BANK, goal=Goal("targeted", "next")), False),
        (SingleRun(Converging()), False),
    ],
    ids=["bank", "no surrogate", "random defense", "budget", "targeted", "convergence"],
)
def test_only_cells_that_depend_on_the_surrogate_alone_share(run: SingleRun, shares: bool) -> None:
    assert can_share_iterates(run.spec()) is shares


def test_the_heartbeat_is_called_at_every_step() -> None:
    beats = []
    run = SingleRun(replace(BANK, restarts=1), model=small_cnn(), source=least_squares())
    spec = replace(run.spec(256), heartbeat=lambda: beats.append(1), iterates=SurrogateIterates())
    outcomes(run, spec)
    assert len(beats) == BANK.steps
    assert len(digits(150)[0]) == 150 and torch.is_grad_enabled()
