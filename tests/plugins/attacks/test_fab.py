"""FAB: the closed form on linear models, the paper's step, and nearer than DeepFool."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.plugin import margin
from bench.threats.norms import L1, L2, Linf
from bench.threats.threat_model import Goal
from plugins.attacks._decision_boundary import Segment, nearest_boundary
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.fab import FAB, bench_attacks
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

ATTACKS = {attack.name: attack for attack in bench_attacks()}
NEAREST = Goal("nearest")
DUAL = {"Linf": 1, "L2": 2, "L1": torch.inf}
every_norm = pytest.mark.parametrize("norm", [Linf, L2, L1], ids=["Linf", "L2", "L1"])
every_form = pytest.mark.parametrize("name", ["fab", "fab-t"])
Norm = type[Linf] | type[L2] | type[L1]


def fab(name: str, walk: int, search: int = 3) -> FAB:
    return FAB(name, name == "fab-t", "", walk=walk, search=search)


@every_norm
@every_form
def test_on_a_linear_model_it_is_within_two_percent_of_the_closed_form(
    name: str, norm: Norm
) -> None:
    """min over k of (z_y - z_k) / ||w_k - w_y||*, and never below."""
    weight, x, ball = gaussian(6, 12, seed=4), interior(32, 12), norm(Fraction(64))
    model = linear(weight, -weight.sum(1) / 2)
    logits = ModelAccess(model).logits(x)
    y = logits.argmax(1)
    apart = (weight - weight[y][:, None]).double().norm(DUAL[ball.name], dim=2)
    gap = logits.gather(1, y[:, None]).double() - logits
    closed = torch.where(apart > 0, gap / apart, torch.inf).amin(1)
    inside = closed < 0.35  # nearer than the edge of the box
    result = run_and_judge(fab(name, 10), model, x, y, ball, goal=NEAREST)
    assert inside.sum() > 16
    assert result.broken.all()
    assert (result.distance >= closed - 1e-6).all()
    assert (result.distance <= 1.02 * closed + 1e-6)[inside].all()


@every_norm
def test_on_a_linear_model_in_the_box_it_is_the_projection_onto_the_boundary(norm: Norm) -> None:
    x, _ = digits(64)
    weight, ball = gaussian(64), norm(Fraction(64))
    f = x.flatten(1).double() @ weight.double()
    y = (f > 0).long()
    boundary = ball.onto(weight.view_as(x[:1]).expand_as(x), -f, x)
    on_it = (boundary.flatten(1).double() @ weight.double()).abs() < 1e-5
    result = run_and_judge(fab("fab", 20), binary(weight), x, y, ball, goal=NEAREST)
    ratio = (result.distance / ball.distance(boundary, x))[on_it & (f.abs() > 0.05)]
    assert len(ratio) > 32
    assert ratio.min() >= 1 - 1e-4
    assert ratio.max() <= 1.02


def test_one_step_is_the_formula_of_the_paper() -> None:
    """From x both projections coincide: x + eta d, and a success is moved back by beta."""
    weight, x, ball = gaussian(12, seed=3), interior(32, 12), L2(Fraction(1))
    offset = 0.05 - float((x.flatten(1) @ weight).mean())
    model = binary(weight, offset)
    logits = ModelAccess(model).logits(x)
    rows = rows_of(fab("fab", 5), model, x, logits.argmax(1), ball)
    first, state = list(states(fab("fab", 5), rows, 1))
    assert first.distance.isinf().all()
    f = logits[:, 1] - logits[:, 0]
    closed = -(f / weight.square().sum())[:, None] * weight
    assert torch.allclose((state.adv - x).flatten(1), 1.05 * closed, rtol=1e-3, atol=1e-6)
    assert torch.allclose(state.point - x, 0.9 * (state.adv - x), rtol=1e-4, atol=1e-7)
    assert torch.allclose(state.outer_margin, 0.05 * f.abs(), rtol=1e-2, atol=1e-6)


def test_the_bias_to_the_clean_image_is_the_ratio_of_distances_up_to_alpha() -> None:
    """From a point p off x: (1 - a)(p + eta d) + a (x + eta d')."""
    weight, x, ball = gaussian(12, seed=3), interior(32, 12), L2(Fraction(1))
    offset = 0.05 - float((x.flatten(1) @ weight).mean())
    model, attack = binary(weight, offset), FAB("fab", False, "", alpha=0.4)
    y = ModelAccess(model).logits(x).argmax(1)
    rows = rows_of(attack, model, x, y, ball)
    state = attack.start(rows)._replace(point=x + 0.05 * gaussian(32, 1, 1, 12, seed=8))
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _where: queries.append(adv)
    attack.step(rows, state)
    point = state.point.flatten(1).double()
    clean, w = x.flatten(1).double(), weight.double()
    here, there = (-(z @ w + offset)[:, None] * w / w.square().sum() for z in (point, clean))
    pull = (here.norm(dim=1) / (here.norm(dim=1) + there.norm(dim=1))).clamp_max(0.4)[:, None]
    expected = (1 - pull) * (point + 1.05 * here) + pull * (clean + 1.05 * there)
    assert (pull < 0.4).any()
    assert (pull == 0.4).any()
    assert torch.allclose(queries[-1].flatten(1).double(), expected.clamp(0, 1), atol=1e-5)


@every_form
def test_a_projection_step_costs_two_queries_and_a_secant_one(
    name: str,
) -> None:
    x, y = digits(32)
    attack = fab(name, 4, search=3)
    rows = rows_of(attack, small_cnn(), x, y, L2(Fraction(8)))
    *_, state = states(attack, rows)
    each = 1 if name == "fab-t" else 9
    assert set(rows.ledger.gradients.tolist()) == {4 * each}
    found = state.distance.isfinite()
    assert found.any()
    assert torch.equal(rows.ledger.forwards, 8 + 3 * found)


def test_each_restart_of_the_targeted_form_ends_at_its_own_class() -> None:
    x, y = digits(64)
    attack, model = fab("fab-t", 20), small_cnn()
    assert attack.restart_count(10) == 9
    assert attack.restart_count(4) == 3
    assert fab("fab", 20).restart_count(10) == 1
    share = torch.zeros(2, 2)
    for row, run in enumerate((0, 4)):
        rows = rows_of(attack, model, x, y, L2(Fraction(8)), restart=torch.full_like(y, run))
        *_, state = states(attack, rows)
        reached = ModelAccess(model).logits(state.adv).argmax(1)
        assert state.distance.isfinite().float().mean() > 0.9
        for column, target in enumerate((0, 4)):
            share[row, column] = (reached == rows.other_classes[:, target]).float().mean()
    assert share[0, 0] > share[1, 0] + 0.2
    assert share[1, 1] > share[0, 1] + 0.2


def test_the_distance_of_the_best_image_never_grows_and_secants_reduce_it() -> None:
    x, y = digits(32)
    attack, model, ball = fab("fab", 15), small_cnn(), L2(Fraction(8))
    trail = list(states(attack, rows_of(attack, model, x, y, ball)))
    for before, after in pairwise(trail):
        assert (after.distance <= before.distance).all()
    end = trail[-1]
    assert (ModelAccess(model).logits(end.adv).argmax(1) != y).all()
    assert torch.equal(ball.distance(end.adv, x), end.distance)
    assert torch.allclose(
        margin(ModelAccess(model).logits(end.adv), y), end.outer_margin, atol=1e-4
    )
    assert (end.distance < trail[attack.walk].distance).float().mean() > 0.5


def test_the_secants_begin_between_the_clean_image_and_the_best_one() -> None:
    x, y = digits(32)
    attack = fab("fab", 4)
    rows = rows_of(attack, small_cnn(), x, y, L2(Fraction(8)))
    *_, state = states(attack, rows, 4)
    found = state.distance.isfinite()
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _where: queries.append(adv)
    attack.step(rows, state)
    segment = Segment(x, margin(rows.clean_logits, y), state.adv, state.outer_margin)
    assert found.sum() > 16
    assert torch.equal(queries[-1][found], segment.crossing(attack.lean)[found])


def test_on_a_network_it_is_nearer_than_deepfool() -> None:
    x, y = digits(64)
    for ball in (L2(Fraction(8)), Linf(Fraction(1))):
        ours, theirs = (
            run_and_judge(attack, small_cnn(), x, y, ball, goal=NEAREST)
            for attack in (fab("fab", 25), DeepFool())
        )
        assert ours.broken.all()
        assert ours.distance.median() <= theirs.distance.median()


def test_a_secant_narrows_a_segment_to_the_part_that_crosses_the_boundary() -> None:
    """Margins -1 and 3 cross at a quarter; `lean` 0.2 adds a fifth of the rest."""
    inner, outer = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    segment = Segment(inner, torch.tensor([-1.0, -1.0]), outer, torch.tensor([3.0, 3.0]))
    assert torch.allclose(segment.crossing(0.0).flatten(), torch.tensor(0.25))
    assert torch.allclose(segment.crossing(0.2).flatten(), torch.tensor(0.4))
    part = segment.narrowed(
        segment.crossing(0.2), torch.tensor([-0.5, 0.5]), torch.tensor([False, True])
    )
    assert torch.allclose(part.inner.flatten(), torch.tensor([0.4, 0.0]))
    assert torch.allclose(part.outer.flatten(), torch.tensor([1.0, 0.4]))
    assert part.inner_margin.tolist() == [-0.5, -1.0]
    assert part.outer_margin.tolist() == [3.0, 0.5]


@every_norm
def test_the_nearest_boundary_has_the_smallest_gap_over_dual_norm(norm: Norm) -> None:
    ball, point = norm(Fraction(1)), interior(16, 12)
    slopes, gaps = gaussian(16, 5, 1, 1, 12, seed=1), gaussian(16, 5, seed=2)
    dual = slopes.flatten(2).norm(DUAL[ball.name], dim=2)
    best = (gaps.abs() / dual).argmin(1)
    boundary = nearest_boundary(ball, point, slopes, gaps)
    assert torch.equal(boundary.gap, gaps[torch.arange(16), best])
    assert torch.equal(boundary.slope, slopes[torch.arange(16), best])
