"""Targeted APGD on the nearest targets: its distances, its order, its cost, and its success."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.plugin import Traits
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from plugins.attacks.apgd import APGD
from plugins.attacks.apgd_l1 import SparseAPGD
from plugins.attacks.apgd_nearest_targets import (
    AnyState,
    NearestTargetAPGD,
    SparseState,
    State,
    bench_attacks,
)
from tests.fixtures.known_models import (
    digits,
    gaussian,
    interior,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

OFFERED = {a.name: a for a in bench_attacks() if isinstance(a, NearestTargetAPGD)}
DENSE, SPARSE = OFFERED["apgd-t-nearest"], OFFERED["apgd-l1-t-nearest"]
BALLS: list[tuple[NearestTargetAPGD, PerturbationSet, float]] = [
    (DENSE, Linf(Fraction(1, 50)), 1),
    (DENSE, L2(Fraction(1, 20)), 2),
    (SPARSE, L1(Fraction(1, 5)), torch.inf),
]
each_norm = pytest.mark.parametrize(("attack", "ball", "dual"), BALLS, ids=["Linf", "L2", "L1"])
MEASURED = 9


def tracked(attack: NearestTargetAPGD, rows: BatchProblem, steps: int) -> Iterator[AnyState]:
    for state in states(attack, rows, steps):
        assert isinstance(state, State | SparseState)
        yield state


def linear_rows(
    attack: NearestTargetAPGD, ball: PerturbationSet, classes: int = 10, restart: int = 0
) -> tuple[BatchProblem, Tensor, nn.Module]:
    """Rows of a linear model with these classes, and its weights; the box is out of reach."""
    x, weight = interior(32, 12), gaussian(classes, 12)
    model = linear(weight, -(weight @ x.flatten(1).mean(0)))
    y = ModelAccess(model).logits(x).argmax(1)
    rows = rows_of(attack, model, x, y, ball, restart=torch.full_like(y, restart))
    return rows, weight, model


@each_norm
def test_on_a_linear_model_the_measured_distances_are_those_to_the_boundaries(
    attack: NearestTargetAPGD, ball: PerturbationSet, dual: float
) -> None:
    rows, weight, _ = linear_rows(attack, ball)
    *_, state = tracked(attack, rows, MEASURED)
    gap = rows.clean - rows.clean.gather(1, rows.y[:, None])
    size = (weight[None] - weight[rows.y][:, None]).norm(dual, dim=2)
    true = (-gap / size).gather(1, rows.other_classes)
    assert torch.allclose(state.distances, true, rtol=1e-4)


@each_norm
def test_a_distance_is_known_only_once_it_is_measured(
    attack: NearestTargetAPGD, ball: PerturbationSet, dual: float
) -> None:
    path = list(tracked(attack, linear_rows(attack, ball)[0], MEASURED + 2))
    for made, state in enumerate(path):
        assert state.distances.isfinite().sum(1).eq(min(made, MEASURED)).all()
    assert all(torch.equal(s.adv, path[0].adv) for s in path[: MEASURED + 1])
    assert not torch.equal(path[MEASURED + 1].adv, path[0].adv)


@pytest.mark.parametrize("restart", [0, 1])
@each_norm
def test_each_restart_raises_the_logit_of_its_target(
    attack: NearestTargetAPGD, ball: PerturbationSet, dual: float, restart: int
) -> None:
    """By most of what the ball allows on a linear model."""
    rows, weight, _ = linear_rows(attack, ball, restart=restart)
    *_, state = tracked(attack, rows, MEASURED + 60)
    rank = state.distances.argsort(1)[:, restart]
    target = rows.other_classes.gather(1, rank[:, None])
    slope = (weight[target[:, 0]] - weight[rows.y]).view_as(rows.x)
    reached, most = (
        (slope * (image - rows.x)).flatten(1).sum(1)
        for image in (state.adv, ball.farthest(slope, rows.x))
    )
    assert (reached > 0).float().mean() > 0.95
    assert reached.sum() > 0.5 * most.sum()


@pytest.mark.parametrize(
    ("attack", "ball", "base"),
    [
        (DENSE, Linf(Fraction(1, 5)), APGD("same", "targeted dlr", "")),
        (DENSE, L2(Fraction(1)), APGD("same", "targeted dlr", "")),
        (SPARSE, L1(Fraction(2)), SparseAPGD("same", "targeted dlr", "", 1)),
    ],
    ids=["Linf", "L2", "L1"],
)
def test_the_steps_after_the_measurement_are_those_of_apgd(
    attack: NearestTargetAPGD, ball: PerturbationSet, base: APGD | SparseAPGD
) -> None:
    """To the bit, in rows whose nearest class is the most likely one."""
    x, y = digits(64)
    rows = rows_of(attack, small_cnn(), x, y, ball, name="same")
    *_, state = tracked(attack, rows, MEASURED + 30)
    *_, plain = states(base, rows_of(base, small_cnn(), x, y, ball, name="same"), 30)
    same = state.distances.argmin(1) == 0
    assert same.sum() > 20
    assert torch.equal(state.adv[same], plain[0][same])
    assert not torch.equal(state.adv, plain[0])


def test_pixels_that_cannot_move_do_not_count() -> None:
    """Class 1 is nearer by all its slopes; along the larger one the pixel would leave the box."""
    weight = torch.tensor([[0.0, 0.0], [-9.0, 1.0], [0.0, 2.0]])
    x, y = torch.tensor([0.0, 0.5]).expand(32, 2).reshape(32, 1, 1, 2), torch.zeros(32).long()
    model = linear(weight, torch.tensor([4.0, 0.5, 0.0]))
    rows = rows_of(DENSE, model, x, y, Linf(Fraction(1, 5)))
    rows.clean = torch.tensor([4.0, 1.0, 1.0]).expand(32, 3)
    *_, state = tracked(DENSE, rows, 2)
    order = rows.other_classes[0].tolist()
    assert state.distances[0, order.index(2)].item() == pytest.approx((4 - 1) / 2)
    assert state.distances[0, order.index(1)].item() == pytest.approx(4 - 1)


@pytest.mark.parametrize(("classes", "restarts"), [(2, 1), (3, 2), (10, 2), (100, 2)])
def test_a_hundred_classes_cost_as_much_as_ten_and_fewer_cost_less(
    classes: int, restarts: int
) -> None:
    assert Traits.restart_count(DENSE, classes) == restarts
    ball = Linf(Fraction(1, 10_000))
    _, _, model = linear_rows(DENSE, ball, classes)
    x = interior(32, 12)
    y = ModelAccess(model).logits(x).argmax(1)
    attack = NearestTargetAPGD("short", ("Linf",), "", length=10)
    result = run_and_judge(attack, model, x, y, ball)
    robust = ~result.broken
    assert robust.sum() > 16
    cost = restarts * (min(classes - 1, MEASURED) + 10)
    assert (result.gradients[robust] == cost).all()
    assert (result.forwards[robust] == cost).all()


def test_two_targets_leave_at_most_one_example_more_than_nine() -> None:
    x, y = digits(64)
    ball = Linf(Fraction(15, 255))
    two = run_and_judge(DENSE, small_cnn(), x, y, ball)
    nine = run_and_judge(APGD("apgd-t", "targeted dlr", ""), small_cnn(), x, y, ball)
    assert (~nine.broken).sum() > 0
    assert (~two.broken).sum() <= (~nine.broken).sum() + 1
    assert two.gradients.sum() < nine.gradients.sum() / 2
