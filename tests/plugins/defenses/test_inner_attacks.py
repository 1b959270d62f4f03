"""Inner attacks of adversarial training, special cases of one another, and their cost."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.plugin import FreeTraining, InnerAttack, Linf, cross_entropy
from bench.training.recipes import resolve_inner_attack
from bench.training.state import EpochReport
from plugins.attacks.pgd import PGD
from plugins.defenses import cascade_training, fast_training, logit_pairing
from plugins.defenses.cascade_training import cascade_loss
from plugins.defenses.fgsm_training import mixture_loss
from plugins.defenses.mma_training import BoundaryPGD, State
from tests.fixtures.known_models import binary, digits, interior, rows_of, states
from tests.fixtures.training_family import (
    BALL,
    attacked_digits,
    linear_classifier,
    recipe_of,
    registry,
    short,
    steps_of,
    trained_digest,
)

# --- D14: MMA ------


def line(count: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A plane as the boundary, points inside the box, and their distances from it."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(64, generator=generator)
    x = interior(count, 64)
    flat = x.flatten(1).double() @ weight.double()
    offset = -float(flat.mean())
    model = binary(weight, offset)
    y = (flat + offset > 0).long()
    return model, x, y, (flat + offset).abs() / weight.double().abs().sum()


@pytest.mark.row("D14")
def test_the_distance_found_is_exact_where_the_boundary_is_a_plane() -> None:
    model, x, y, margin = line(64)
    ball = Linf(Fraction(1, 10))
    attack = BoundaryPGD(climb=20, rate=0.25, search=14)
    assert (margin < ball.radius).all()
    *_, last = states(attack, rows_of(attack, model, x, y, ball))
    found = ball.distance(last.adv, x).double()
    assert (model(last.adv).argmax(1) != y).all()
    assert torch.allclose(found, margin, atol=2 * ball.radius * 2.0**-13)


def bracket(attack: BoundaryPGD, ball: Linf) -> tuple[nn.Module, Tensor, Tensor, list[State]]:
    x, y = digits(64)
    model = linear_classifier()
    return model, x, y, list(states(attack, rows_of(attack, model, x, y, ball)))


@pytest.mark.row("D14")
def test_the_bisection_interval_is_valid_at_every_query() -> None:
    attack = BoundaryPGD(climb=10, rate=0.25, search=8)
    model, x, y, trace = bracket(attack, Linf(Fraction(2, 5)))

    def wrong(share: Tensor, end: Tensor) -> Tensor:
        images = (x + share[:, None, None, None] * (end - x)).clamp(0, 1)
        found: Tensor = model(images).argmax(1) != y
        return found

    assert all((s.low == 0).all() and (s.high == 1).all() for s in trace[:11])
    widths = []
    for state in trace[11:]:
        crossed = state.low < 1
        assert crossed.sum() > 32
        assert wrong(state.high, state.endpoint)[crossed].all()
        right = model(x).argmax(1) == y
        assert not wrong(state.low, state.endpoint)[right & crossed].any()
        assert torch.equal(state.adv, (x + state.high[:, None, None, None] * (state.endpoint - x)))
        widths.append((state.high - state.low)[crossed])
    assert [float(w.max()) for w in widths] == [2.0**-k for k in range(8)]
    assert [float(w.min()) for w in widths] == [2.0**-k for k in range(8)]


@pytest.mark.row("D14")
def test_without_a_boundary_in_the_ball_the_search_stays_at_the_endpoint() -> None:
    attack = BoundaryPGD(climb=5, rate=0.5, search=4)
    ball = Linf(Fraction(1, 1000))
    model, x, y, trace = bracket(attack, ball)
    last = trace[-1]
    robust = model(last.endpoint).argmax(1) == y
    assert robust.sum() > 32
    assert (last.high[robust] == 1).all() and (last.low[robust] == 1).all()
    assert torch.equal(last.adv[robust], last.endpoint[robust])
    assert ball.contains(last.adv, x).all()


# --- D17: Fast -----


@pytest.mark.row("D17")
def test_from_the_clean_image_with_one_radius_the_fast_step_is_fgsm() -> None:
    zero = steps_of(fast_training.STEP, random_start=False, rate=1.0)
    assert torch.equal(attacked_digits(zero), attacked_digits(InnerAttack("fgsm", BALL)))
    assert not torch.equal(
        attacked_digits(fast_training.STEP), attacked_digits(InnerAttack("fgsm", BALL))
    )


@pytest.mark.row("D17")
def test_the_fast_step_is_five_quarters_of_the_radius_from_a_uniform_start() -> None:
    x, y = digits(64)
    attack = PGD(steps=1, rate=1.25)
    first, after = states(attack, rows_of(attack, linear_classifier(), x, y, BALL))
    slope = (
        ModelAccess(linear_classifier())
        .gradient(first, lambda logits: cross_entropy(logits, y))
        .gradient
    )
    change = (first + 1.25 * BALL.radius * slope.sign() - x).clamp(-BALL.radius, BALL.radius)
    assert torch.allclose(after, (x + change).clamp(0, 1), atol=1e-6)
    assert torch.equal(after, attacked_digits(fast_training.STEP))
    inside = (x > 0.25) & (x < 0.75)
    start = ((first - x)[inside] / BALL.radius).sort().values
    assert torch.allclose(start, torch.linspace(-1, 1, len(start)), atol=0.1), "uniform"


@pytest.mark.row("D05", "D07", "D11", "D17", "D19")
def test_recipes_that_are_special_cases_give_the_same_weights(tmp_path: Path) -> None:
    fgsm, pgd, mixture = map(recipe_of, ("fgsm-training", "pgd-training", "fgsm-mixture"))
    zero = steps_of(fast_training.STEP, random_start=False, rate=1.0)
    plain, alp, first = map(recipe_of, ("undefended", "alp", "cascade-first"))
    quick = short(recipe_of("fast-training"), inner=zero, schedule="cosine", rate=2e-3)
    unpaired = partial(logit_pairing.adversarial_pairing, strength=0.0, form="logits")
    pairs = {
        "fast is fgsm": (quick, short(fgsm)),
        "mixture is plain": (short(mixture, loss=partial(mixture_loss, alpha=1.0)), short(plain)),
        "mixture is fgsm": (short(mixture, loss=partial(mixture_loss, alpha=0.0)), short(fgsm)),
        "alp is pgd": (short(alp, loss=unpaired), short(pgd)),
        "cascade is mixture": (
            short(first, loss=partial(cascade_loss, alpha=0.5, pivot=0.0)), short(mixture),
        ),
    }  # fmt: skip
    for name, (one, other) in pairs.items():
        assert trained_digest(one, tmp_path / "a" / name) == trained_digest(
            other, tmp_path / "b" / name
        ), name
    real = short(recipe_of("fast-training"), schedule="cosine", rate=2e-3)
    assert trained_digest(real, tmp_path / "c") != trained_digest(quick, tmp_path / "d")


@pytest.mark.row("D19")
def test_the_cascade_s_transferred_images_are_bim_images_of_the_first_stage() -> None:
    second = recipe_of("cascade")
    assert second.teacher == "cascade-first"
    assert second.transfer is not None
    assert resolve_inner_attack(registry(), second.transfer).value.steps > 1
    assert second.transfer.ball == BALL == cascade_training.BALL
    assert dataclasses.replace(second, teacher="", transfer=None) == dataclasses.replace(
        recipe_of("cascade-first"), loss=second.loss
    )
    images = attacked_digits(second.transfer)
    assert BALL.contains(images, digits(64)[0]).all()


# --- RP05: the cost of training --------------------------------------------------------------


def price(name: str, folder: Path) -> float:
    """Gradients for each image and epoch, counted while the registered inner attack trains."""
    reports: list[EpochReport] = []
    trained_digest(short(recipe_of(name)), folder / name, reports.append)
    return reports[0].gradients / 128


@pytest.mark.row("RP05", "D16", "D17")
def test_the_costs_have_the_ratios_of_the_published_times(tmp_path: Path) -> None:
    """PGD-7 104.94 s an epoch, FGSM 25.36 s; 17.49, 17.44 and 6.34 minutes in all."""
    names = ("pgd-training", "free-training", "fast-training")
    pgd, free, fgsm = (price(name, tmp_path) for name in names)
    assert (pgd, free, fgsm) == (8, 8, 2)
    assert pgd / fgsm == pytest.approx(104.94 / 25.36, rel=0.05)
    whole = {n: p * recipe_of(n).epochs for n, p in zip(names, (pgd, free, fgsm), strict=True)}
    assert whole["free-training"] / whole["pgd-training"] == pytest.approx(17.44 / 17.49, rel=0.05)
    assert whole["fast-training"] / whole["pgd-training"] == pytest.approx(6.34 / 17.49, rel=0.05)
    free_by = recipe_of("free-training").inner
    assert isinstance(free_by, FreeTraining)
    assert free_by.replays == free
