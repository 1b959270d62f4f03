"""APGD with early stops: what it breaks on linear models, its stages, its limits, and its cost."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from plugins.attacks.apgd_early_stop import (
    CROSS_ENTROPY,
    MEASURING,
    TARGETED,
    AnyState,
    EarlyStopAPGD,
    SparseState,
    State,
    bench_attacks,
    relative_margin,
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

OFFERED = {a.name: a for a in bench_attacks() if isinstance(a, EarlyStopAPGD)}
DENSE, SPARSE = OFFERED["apgd-early-stop"], OFFERED["apgd-l1-early-stop"]
BALLS: list[tuple[EarlyStopAPGD, PerturbationSet, float]] = [
    (DENSE, Linf(Fraction(1, 50)), 1),
    (DENSE, L2(Fraction(1, 20)), 2),
    (SPARSE, L1(Fraction(1, 25)), torch.inf),
]
each_norm = pytest.mark.parametrize(("attack", "ball", "dual"), BALLS, ids=["Linf", "L2", "L1"])
PATIENT = ((1, -torch.inf),)


def linear_case(classes: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model, its weights, and images with the labels that it gives."""
    x, weight = interior(48, 12), gaussian(classes, 12)
    model = linear(weight, -(weight @ x.flatten(1).mean(0)))
    return model, weight, x, ModelAccess(model).logits(x).argmax(1)


def tracked(attack: EarlyStopAPGD, rows: BatchProblem, steps: int) -> list[AnyState]:
    found = list(states(attack, rows, steps))
    assert all(isinstance(state, State | SparseState) for state in found)
    return found


@pytest.mark.parametrize("classes", [2, 3, 10])
@each_norm
def test_on_a_linear_model_it_breaks_what_lies_within_the_radius(
    attack: EarlyStopAPGD, ball: PerturbationSet, dual: float, classes: int
) -> None:
    """Exactly, but for examples within 2 % of the boundary; with two and three classes, too."""
    model, weight, x, y = linear_case(classes)
    logits = ModelAccess(model).logits(x)
    size = (weight[None] - weight[y][:, None]).norm(dual, dim=2)
    distance = ((logits.gather(1, y[:, None]) - logits) / size).nan_to_num(torch.inf)
    distance = distance.scatter(1, y[:, None], torch.inf).amin(1)
    ratio = distance / float(ball.radius)
    broken = run_and_judge(attack, model, x, y, ball).broken
    clear = (ratio - 1).abs() > 0.02
    assert 0 < int((ratio < 1).sum()) < len(x)
    assert torch.equal(broken[clear], (ratio < 1)[clear])


@each_norm
def test_each_stage_follows_the_one_before(
    attack: EarlyStopAPGD, ball: PerturbationSet, dual: float
) -> None:
    model, _, x, y = linear_case(10)
    patient = replace(attack, limits=PATIENT, length=6, targets=2)
    path = tracked(patient, rows_of(patient, model, x, y, ball), patient.steps)
    stages = [sorted(set(state.stage.tolist())) for state in path]
    expected = [CROSS_ENTROPY] * 6 + [MEASURING] * 9 + [TARGETED] * 6 + [TARGETED + 1] * 6
    assert stages == [[stage] for stage in (*expected, TARGETED + 2)]
    assert bool(patient.done(path[-1]).all())
    assert not bool(patient.done(path[-2]).any())


def test_the_measured_order_is_that_of_the_distances_to_the_boundaries() -> None:
    model, weight, x, y = linear_case(10)
    patient = replace(DENSE, limits=PATIENT, length=4)
    rows = rows_of(patient, model, x, y, Linf(Fraction(1, 50)))
    state = tracked(patient, rows, 4 + 9)[-1]
    gap = rows.clean - rows.clean.gather(1, rows.y[:, None])
    size = (weight[None] - weight[rows.y][:, None]).norm(1, dim=2)
    true = (-gap / size).gather(1, rows.other_classes)
    assert torch.allclose(state.distances, true, rtol=1e-4)


@each_norm
def test_every_stage_begins_at_the_random_start(
    attack: EarlyStopAPGD, ball: PerturbationSet, dual: float
) -> None:
    model, _, x, y = linear_case(10)
    patient = replace(attack, limits=PATIENT, length=5)
    path = tracked(patient, rows_of(patient, model, x, y, ball), 5 + 9 + 5)
    for at in (0, 5, 5 + 9, 5 + 9 + 5):
        state = path[at]
        queried = state.point if isinstance(state, SparseState) else state.iterate
        assert torch.equal(queried, state.first)


def test_a_row_far_from_the_boundary_ends_its_stage_at_the_limit() -> None:
    model, _, x, y = linear_case(10)
    early = replace(DENSE, limits=((3, -1e-6),), length=8)
    rows = rows_of(early, model, x, y, Linf(Fraction(1, 10**6)))
    path = tracked(early, rows, 3 + 9)
    assert path[2].stage.eq(CROSS_ENTROPY).all()
    assert path[3].stage.eq(MEASURING).all()
    assert path[3 + 9].stage.eq(TARGETED).all()


def test_a_row_at_its_limit_goes_on() -> None:
    model, _, x, y = linear_case(10)
    early = replace(DENSE, limits=((3, -100.0),), length=8)
    path = tracked(early, rows_of(early, model, x, y, Linf(Fraction(1, 10**6))), 8)
    assert path[7].stage.eq(CROSS_ENTROPY).all()
    assert path[8].stage.eq(MEASURING).all()


def test_what_ends_early_is_judged_at_its_nearest_iterate() -> None:
    x, y = digits(16)
    model = small_cnn()
    rows = rows_of(DENSE, model, x, y, Linf(Fraction(1, 20)))
    for state in states(DENSE, rows, DENSE.steps):
        if bool(DENSE.done(state).all()):
            break
    margins = relative_margin(rows, ModelAccess(model).logits(state.adv))
    assert torch.allclose(margins, state.nearest_margin, atol=1e-5)


@pytest.mark.parametrize(
    ("attack", "ball", "share"),
    [
        (DENSE, Linf(Fraction(1, 10)), 0.5), (DENSE, L2(Fraction(1, 2)), 0.5),
        (SPARSE, L1(Fraction(2)), 0.85),
    ],
    ids=["Linf", "L2", "L1"],
)  # fmt: skip
def test_the_stops_save_gradients_and_hardly_a_success(
    attack: EarlyStopAPGD, ball: PerturbationSet, share: float
) -> None:
    """Less in L1, where a search begins in larger balls, in which most margins are positive."""
    x, y = digits(48)
    early = run_and_judge(attack, small_cnn(), x, y, ball)
    patient = run_and_judge(replace(attack, limits=PATIENT), small_cnn(), x, y, ball)
    assert 0 < int(early.broken.sum()) < len(x)
    assert int((patient.broken & ~early.broken).sum()) <= 1
    unbroken = ~early.broken & ~patient.broken
    assert early.gradients[unbroken].sum() < share * patient.gradients[unbroken].sum()


def test_with_few_classes_a_margin_is_relative_to_the_clean_one() -> None:
    model, _, x, y = linear_case(3)
    rows = rows_of(DENSE, model, x, y, Linf(Fraction(1, 50)))
    assert torch.allclose(relative_margin(rows, rows.clean), torch.full((len(x),), -1.0))
    assert torch.allclose(relative_margin(rows, 3 * rows.clean), torch.full((len(x),), -3.0))
