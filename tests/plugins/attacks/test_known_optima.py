"""Attacks on models whose best attack is known: they find it and never exceed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess, signed_loss
from bench.engine.problem import points_of
from bench.plugin import Attack, cross_entropy
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.threat_model import Goal
from plugins.attacks import fast_gradient
from plugins.attacks.bim import BIM
from plugins.attacks.boundary import Boundary, spherical_proposal
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.fgsm_targeted import TargetedFGSM
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_l2step import UnsignedPGD
from plugins.attacks.pgd_margin import MarginPGD
from plugins.attacks.unbounded_pgd import Unbounded
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    last_iterate,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

FAST = {attack.name: attack for attack in fast_gradient.bench_attacks()}
FGSM, FGM_L2, FGM_L1, FILLED = (FAST[n] for n in ("fgsm", "fgm-l2", "fgm-l1", "fgm-l1-filled"))
NORMS = [Linf, L2, L1]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=["Linf", "L2", "L1"])
Norm = Callable[[Fraction], PerturbationSet]
DUAL: dict[str, float] = {"Linf": 1, "L2": 2, "L1": torch.inf}


def flat(images: Tensor) -> Tensor:
    return images.flatten(1).double()


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ModelAccess(model).gradient(x, signed_loss(cross_entropy, y, 1)).gradient


def right(model: nn.Module, x: Tensor) -> Tensor:
    """The labels that the model predicts, so every example is correct before the attack."""
    return ModelAccess(model).logits(x).argmax(1)


# Fast gradients.


@pytest.mark.row("A02", "A04", "A05")
@pytest.mark.parametrize(
    ("attack", "norm"), [(FGSM, Linf), (FGM_L2, L2), (FGM_L1, L1)], ids=["fgsm", "l2", "l1"]
)
def test_a_fast_gradient_step_increases_the_loss_by_the_dual_norm(
    attack: Attack, norm: Norm
) -> None:
    """<d, g> = eps ||g||* and ||d|| = eps where the box is out of reach."""
    ball, x = norm(Fraction(1, 4)), interior(32, 12)
    model = nn.Sequential(linear(gaussian(8, 12)), nn.Tanh(), nn.Linear(8, 4))
    y = right(model, x)
    change = flat(last_iterate(attack, rows_of(attack, model, x, y, ball))) - flat(x)
    gradient = flat(loss_gradient(model, x, y))
    gain = 0.25 * gradient.norm(DUAL[ball.name], dim=1)
    assert torch.allclose((change * gradient).sum(1), gain, rtol=1e-6, atol=0)
    assert torch.allclose(ball.distance(change, 0 * change), torch.tensor(0.25).double())


@pytest.mark.row("A02")
def test_fgsm_changes_each_pixel_with_a_gradient_by_eps_and_no_other() -> None:
    weight = torch.tensor([1.0, -2.0, 0.0, 1e-6, 0.0, 3.0])
    x = interior(4, 6)
    y = right(binary(weight), x)
    change = flat(
        last_iterate(FGSM, rows_of(FGSM, binary(weight), x, y, Linf(Fraction(1, 4))))
    ) - flat(x)
    sign = weight.sign() * (1 - 2 * y[:, None])
    assert torch.allclose(change, 0.25 * sign.double(), atol=1e-7, rtol=0)


@pytest.mark.row("A05")
def test_fgm_l1_changes_the_pixel_with_the_largest_gradient() -> None:
    weight, x = gaussian(12), interior(16, 12)
    rows = rows_of(FGM_L1, binary(weight), x, right(binary(weight), x), L1(Fraction(1, 4)))
    change = flat(last_iterate(FGM_L1, rows)) - flat(x)
    assert ((change != 0).sum(1) == 1).all()
    assert (change.abs().argmax(1) == weight.abs().argmax()).all()


@pytest.mark.row("A02", "A04")
@pytest.mark.parametrize(
    ("attack", "ball"),
    [(FGSM, Linf(Fraction(1, 50))), (FGM_L2, L2(Fraction(1, 25)))],
    ids=["Linf", "L2"],
)
def test_on_a_linear_binary_model_one_step_is_the_worst_case(
    attack: Attack, ball: PerturbationSet
) -> None:
    """Robust margin |f(x)| - eps ||w||*: broken exactly where it is negative."""
    weight, x = gaussian(12, seed=1), interior(64, 12)
    reach = ball.radius * float(weight.norm(DUAL[ball.name]))
    model = binary(weight, -float((flat(x) @ weight.double()).mean()))
    f = flat(ModelAccess(model).logits(x))[:, 1] * 2
    broken = run_and_judge(attack, model, x, right(model, x), ball).broken
    assert torch.equal(broken, f.abs() < reach)
    assert 10 < broken.sum() < 54


@pytest.mark.row("A02")
def test_on_a_linear_binary_model_fgsm_is_the_farthest_point_of_ball_and_box() -> None:
    x, y = digits(64)
    weight = gaussian(64)
    rows = rows_of(FGSM, binary(weight), x, y % 2, Linf(Fraction(1, 5)))
    direction = (1 - 2 * (y % 2))[:, None, None, None] * weight.view(1, 1, 8, 8)
    assert torch.equal(last_iterate(FGSM, rows), rows.ball.farthest(direction, x))


@pytest.mark.row("A05")
def test_the_filled_l1_step_gains_at_least_as_much_and_more_at_the_edge_of_the_box() -> None:
    x, _ = digits(64)
    weight = gaussian(64)
    model = binary(weight)
    y = right(model, x)

    def gain(attack: Attack) -> Tensor:
        moved = last_iterate(attack, rows_of(attack, model, x, y, L1(Fraction(2))))
        return ((flat(moved) - flat(x)) @ weight.double()) * (1 - 2 * y)

    plain, filled = gain(FGM_L1), gain(FILLED)
    assert (filled >= plain - 1e-6).all()
    assert (filled > 1.5 * plain).all()


def one_step(attack: Attack, norm: Norm) -> Tensor:
    x, y = digits(64)
    return last_iterate(attack, rows_of(attack, small_cnn(), x, y, norm(Fraction(1, 5))))


@pytest.mark.row("A02", "A06", "A07")
@pytest.mark.parametrize(
    ("norm", "fast"), [(Linf, FGSM), (L2, FGM_L2), (L1, FGM_L1)], ids=["Linf", "L2", "L1"]
)
def test_one_full_step_of_bim_or_pgd_is_the_fast_gradient_step_to_the_bit(
    norm: Norm, fast: Attack
) -> None:
    expected = one_step(fast, norm)
    assert torch.equal(one_step(BIM(steps=1, rate=1), norm), expected)
    assert torch.equal(one_step(PGD(steps=1, rate=1, random_start=False), norm), expected)


@pytest.mark.row("A03")
def test_with_two_classes_targeted_fgsm_is_fgsm_to_the_bit() -> None:
    model = nn.Sequential(linear(gaussian(8, 12)), nn.Tanh(), nn.Linear(8, 2))
    x, ball = interior(32, 12), Linf(Fraction(1, 4))
    y = right(model, x)
    targeted = last_iterate(TargetedFGSM(), rows_of(TargetedFGSM(), model, x, y, ball))
    assert torch.equal(targeted, last_iterate(FGSM, rows_of(FGSM, model, x, y, ball)))


@pytest.mark.row("A03")
def test_targeted_fgsm_raises_one_class_after_another() -> None:
    x, y = digits(64)
    attack, model = TargetedFGSM(), small_cnn()
    before = ModelAccess(model).logits(x).softmax(1)
    for run in range(9):
        rows = rows_of(attack, model, x, y, Linf(Fraction(2, 255)), restart=torch.full_like(y, run))
        target = rows.other_classes[:, run : run + 1]
        after = ModelAccess(model).logits(last_iterate(attack, rows)).softmax(1)
        assert (after.gather(1, target) > before.gather(1, target)).float().mean() > 0.9


@pytest.mark.row("A03", "G02")
def test_under_a_targeted_threat_model_fgsm_descends_the_loss_of_the_target() -> None:
    x, y = digits(64)
    aim, ball = (y + 1) % 10, Linf(Fraction(1, 5))
    rows = rows_of(FGSM, small_cnn(), x, y, ball, goal=Goal("targeted", "next"), target=aim)
    down = -loss_gradient(small_cnn(), x, aim)
    assert torch.equal(last_iterate(FGSM, rows), ball.project(x + 0.2 * down.sign(), x))


# Iterated attacks.


@pytest.mark.row("A07", "G06")
@pytest.mark.parametrize(
    ("norm", "steps", "near_edge", "slack"),
    [(Linf, 20, True, 1e-6), (L2, 80, False, 1e-6), (L2, 40, True, 2e-3), (L1, 40, True, 0.025)],
    ids=["Linf", "L2", "L2 in the box", "L1"],
)
def test_pgd_reaches_the_closed_form_optimum_of_a_linear_model(
    norm: Norm, steps: int, near_edge: bool, slack: float
) -> None:
    """Linf once the steps cross the ball; L2 with an angle that shrinks by 1 / (1 + rate) a step.

    Where the optimum has corners (saturated pixels in L2, the vertices of L1) the iterates surround
    it at a distance of up to one step of rate * eps.
    """
    x = digits(64)[0] if near_edge else interior(64, 64)
    weight, attack, ball = gaussian(64), PGD(steps, rate=0.1), norm(Fraction(1, 4))
    model, label = binary(weight, 20.0), torch.ones(64, dtype=torch.int64)
    best = flat(ball.farthest(-weight.view_as(x[:1]).expand_as(x), x))
    optimum = (flat(x) - best) @ weight.double()
    gain = torch.zeros_like(optimum)
    for adv in states(attack, rows_of(attack, model, x, label, ball)):
        gain = torch.maximum(gain, (flat(x) - flat(adv)) @ weight.double())
    assert (gain <= optimum + 1e-5).all()
    assert (gain >= optimum * (1 - slack)).all()


@pytest.mark.row("A06")
def test_on_a_linear_model_the_loss_of_bim_never_falls() -> None:
    x = interior(32, 12)
    weight, attack, ball = gaussian(12), BIM(steps=20, rate=0.05), L2(Fraction(1, 4))
    model = binary(weight)
    side = (1 - 2 * right(model, x)).double()
    rows = rows_of(attack, model, x, right(model, x), ball)
    height = [side * (flat(adv) @ weight.double()) for adv in states(attack, rows)]
    assert all((after >= before - 1e-6).all() for before, after in pairwise(height))


@pytest.mark.row("A08")
def test_signed_steps_reach_the_corner_in_eps_over_alpha_steps_and_gradient_steps_do_not() -> None:
    x, weight = interior(32, 12), gaussian(12)
    y, ball = right(binary(weight), x), Linf(Fraction(1, 4))
    signed = BIM(steps=10, rate=0.1)
    unsigned = UnsignedPGD(steps=10, rate=0.1)
    corner = ball.farthest((1 - 2 * y)[:, None, None, None] * weight.view(1, 1, 1, 12), x)
    reached = last_iterate(signed, rows_of(signed, binary(weight), x, y, ball))
    assert (reached - corner).abs().max() < 1e-6
    rows = rows_of(unsigned, binary(weight), x, y, ball)
    state = x
    for _ in range(10):
        state = unsigned.step(rows, state)
    assert ((state - corner).abs().flatten(1).amax(1) > 0.01).all()


@pytest.mark.row("A08")
def test_in_l2_unsigned_pgd_is_pgd() -> None:
    x, y = digits(64)
    first, second = (
        last_iterate(
            attack, rows_of(attack, small_cnn(), x, y, L2(Fraction(1, 2)), name="same"), 10
        )
        for attack in (PGD(), UnsignedPGD())
    )
    assert (first - second).abs().max() < 1e-4


@pytest.mark.parametrize("norm", NORMS[:2], ids=["Linf", "L2"])
def test_margin_pgd_finds_the_exact_worst_case_of_a_linear_softmax_model(norm: Norm) -> None:
    """Broken exactly where some z_k - z_y can be made positive inside ball and box."""
    x, _ = digits(128)
    weight, ball = 0.5 * gaussian(5, 64), norm(Fraction(1, 10) if norm is Linf else Fraction(1, 2))
    model = linear(weight)
    y = right(model, x)
    worst = torch.full((128,), -torch.inf, dtype=torch.float64)
    for k in range(5):
        difference = (weight[k] - weight[y]).view(-1, 1, 8, 8)
        end = flat(ball.farthest(difference, x)) * flat(difference)
        worst = torch.maximum(worst, end.sum(1).masked_fill(y == k, -torch.inf))
    result = run_and_judge(MarginPGD(), model, x, y, ball)
    assert torch.equal(result.broken, worst > 0)
    assert 10 < result.broken.sum() < 118
    assert worst.abs().min() > 1e-4, "no example sits on the fence"


@pytest.mark.parametrize(
    "attack", [FGSM, BIM(), PGD(), MarginPGD(), DeepFool()], ids=lambda a: a.name
)
@pytest.mark.parametrize("norm", NORMS[:2], ids=["Linf", "L2"])
def test_an_example_is_broken_exactly_where_the_ball_reaches_the_boundary(
    attack: Attack, norm: Norm
) -> None:
    """Every image is at the same distance from the boundary of a binary model."""
    weight = gaussian(12, seed=2)
    near = interior(32, 12)
    excess = (flat(near) @ weight.double() - 0.1).float() / weight.square().sum()
    x = near - (excess[:, None] * weight).view_as(near)
    model = binary(weight, 0.0)
    assert x.min() > 0
    assert x.max() < 1
    distance = 0.1 / float(weight.norm(DUAL[norm(Fraction(1)).name]))
    y = torch.ones(32, dtype=torch.int64)
    exact = replace(attack, overshoot=0.002) if isinstance(attack, DeepFool) else attack
    if norm is L2 and attack is FGSM:
        exact = FGM_L2
    under = norm(Fraction(0.99 * distance).limit_denominator(10**6))
    over = norm(Fraction(1.01 * distance).limit_denominator(10**6))
    assert not run_and_judge(exact, model, x, y, under).broken.any()
    assert run_and_judge(exact, model, x, y, over).broken.all()


# Minimum norm.


@pytest.mark.row("A10")
@every_norm
def test_deepfool_solves_an_affine_binary_model_in_one_step(norm: Norm) -> None:
    """r = -f w / ||w||^2 in L2, |f| / ||w||* along the steepest direction in any norm."""
    weight, x = gaussian(12, seed=3).double(), interior(32, 12).double()
    offset = 0.05 - float((flat(x) @ weight).mean())
    attack, ball = DeepFool(search=0), norm(Fraction(1))
    model = binary(weight, offset).double()
    offset = float(model(0 * x)[0].diff())
    weight = (model(torch.eye(12).double().view(12, 1, 1, 12)) - model(0 * x[:1])).diff()[:, 0]
    f = flat(x) @ weight + offset
    rows = rows_of(attack, model, x, right(model, x), ball)
    state = attack.step(rows, attack.start(rows))
    length = f.abs() / weight.norm(DUAL[ball.name])
    assert torch.allclose(ball.distance(state.change, 0 * x), length, rtol=1e-12)
    assert (flat(x + state.change) @ weight + offset).abs().max() < 1e-13
    if norm is L2:
        closed = -f[:, None] * weight / weight.square().sum()
        assert torch.allclose(flat(state.change), closed, rtol=1e-10)
    assert torch.allclose(state.adv - x, 1.02 * state.change, rtol=1e-10)
    assert attack.done(state).all()
    assert torch.equal(attack.step(rows, state).adv, state.adv)
    assert set(rows.ledger.gradients.tolist()) == {1}, "two classes have one difference"


@pytest.mark.row("A10")
@every_norm
def test_deepfool_solves_an_affine_model_of_many_classes_in_one_step(norm: Norm) -> None:
    weight, x = gaussian(6, 12, seed=4), interior(32, 12).double()
    model = linear(weight, -weight.sum(1) / 2).double()
    attack, ball = DeepFool(), norm(Fraction(1))
    rows = rows_of(attack, model, x, right(model, x), ball)
    state = attack.step(rows, attack.start(rows))
    nearest = to_nearest_boundary(weight, rows.clean, rows.y, ball)
    assert torch.allclose(ball.distance(state.change, 0 * x), nearest, rtol=1e-10)
    two = model(x + state.change).topk(2, 1).values
    assert two.diff().abs().max() < 1e-12


def to_nearest_boundary(weight: Tensor, logits: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
    """min over k of (z_y - z_k) / ||w_k - w_y||*."""
    gap = logits.gather(1, y[:, None]).double() - logits
    apart = (weight - weight[y][:, None]).double().norm(DUAL[ball.name], dim=2)
    return torch.where(apart > 0, gap / apart, torch.inf).amin(1)


@pytest.mark.row("A10")
def test_deepfool_does_not_depend_on_the_scale_of_the_model() -> None:
    weight, x, ball = gaussian(6, 12, seed=4), interior(32, 12), L2(Fraction(1))
    y, attack = right(linear(weight), x), DeepFool()
    small, large = (
        last_iterate(attack, rows_of(attack, linear(scale * weight), x, y, ball))
        for scale in (1, 1024)
    )
    assert (small - large).abs().max() < 1e-6


@pytest.mark.row("A10")
@every_norm
def test_deepfool_crosses_the_boundary_of_a_network_with_saturated_pixels(
    norm: Norm,
) -> None:
    """Half of the pixels cannot decrease; all rows still reach the boundary in a few steps."""
    x, y = digits(64)
    attack, model = DeepFool(), small_cnn()
    rows = rows_of(attack, model, x, y, norm(Fraction(1)))
    *_, state = states(attack, rows, 10)
    arrived = ModelAccess(model).logits(points_of(state)).argmax(1) != y
    assert arrived.all()
    assert attack.done(state).all()
    assert rows.ledger.gradients.float().mean() < 40


def test_deepfool_is_charged_for_the_candidate_classes_only() -> None:
    x, y = digits(64)
    attack = DeepFool(candidates=3)
    rows = rows_of(attack, small_cnn(), x, y, L2(Fraction(1)))
    *_, state = states(attack, rows, 10)
    assert attack.done(state).float().mean() > 0.9
    evaluations = (rows.ledger.forwards - attack.search) // 2
    assert torch.equal(
        rows.ledger.gradients[attack.done(state)], 2 * evaluations[attack.done(state)]
    )


def test_the_secants_of_deepfool_reduce_the_distance_and_stay_beyond_the_boundary() -> None:
    x, y = digits(64)
    plain, searched = (
        run_and_judge(DeepFool(search=k), small_cnn(), x, y, L2(Fraction(8)), goal=Goal("nearest"))
        for k in (0, 3)
    )
    assert searched.broken.all()
    assert (searched.distance <= plain.distance).all()
    assert searched.distance.median() < 0.97 * plain.distance.median()


@pytest.mark.row("A10", "G05")
def test_with_the_nearest_goal_deepfool_is_within_its_overshoot_of_the_closed_form() -> None:
    weight, x, ball = gaussian(6, 12, seed=4), interior(64, 12), L2(Fraction(4))
    model = linear(weight)
    y = right(model, x)
    nearest = to_nearest_boundary(weight, ModelAccess(model).logits(x), y, ball)
    result = run_and_judge(DeepFool(), model, x, y, ball, goal=Goal("nearest"))
    assert result.broken.all()
    assert (result.distance >= nearest - 1e-6).all()
    assert (result.distance <= 1.02 * nearest + 1e-6).all()
    assert (result.distance <= 1.005 * nearest + 1e-6).float().mean() > 0.9


@pytest.mark.row("B06")
def test_boundary_converges_to_the_projection_onto_a_half_space() -> None:
    """Never nearer than the boundary, and within 2 % of it; every accepted point is adversarial."""
    weight, x = gaussian(12, seed=5), interior(32, 12)
    model = binary(weight, -float((flat(x) @ weight.double()).mean()) + 0.3)
    y = right(model, x)
    f = 2 * flat(ModelAccess(model).logits(x))[:, 1]
    closed = f.abs() / float(weight.norm())
    attack, ball = Boundary(), L2(Fraction(1))
    rows = rows_of(attack, model, x, y, ball)
    before = torch.full((32,), torch.inf)
    for state in states(attack, rows, 700):
        assert torch.equal(right(model, state.adv) != y, state.found)
        distance = ball.distance(state.adv, x).masked_fill(~state.found, torch.inf)
        assert (distance <= before + 1e-6).all()
        before = distance
    assert (before >= closed - 1e-5).all()
    assert (before <= 1.02 * closed).float().mean() > 0.9


@pytest.mark.row("B06")
def test_a_spherical_step_keeps_the_distance_and_is_orthogonal() -> None:
    """A step of length a * d along the tangent, rescaled: cos = 1 / sqrt(1 + a^2)."""
    x = interior(32, 12)
    rows = rows_of(Boundary(), binary(gaussian(12)), x, torch.ones(32).long(), L2(Fraction(1)))
    adv, around = x + 0.1 * gaussian(32, 1, 1, 12, seed=6), torch.full((32,), 0.3)
    moved, change = flat(spherical_proposal(rows, adv, around) - x), flat(adv - x)
    assert torch.allclose(moved.norm(dim=1), change.norm(dim=1), rtol=1e-5)
    cosine = torch.cosine_similarity(moved, change)
    assert torch.allclose(cosine, torch.tensor(1.09**-0.5).double(), rtol=1e-5)


@pytest.mark.row("A22")
def test_the_unbounded_attack_begins_at_the_clean_image_and_then_at_random_points() -> None:
    x, y = digits(64)
    attack = Unbounded()
    assert attack.restart_count(10) == 3
    run = torch.arange(64) % 3
    rows = rows_of(attack, small_cnn(), x, y, Linf(Fraction(1)), restart=run)
    moved = (attack.start(rows) != x).flatten(1).any(1)
    assert torch.equal(moved, run > 0)


@pytest.mark.row("A22")
def test_the_unbounded_attack_breaks_any_model_with_a_gradient() -> None:
    x, y = digits(64)
    assert run_and_judge(Unbounded(), small_cnn(), x, y, Linf(Fraction(1))).broken.all()
