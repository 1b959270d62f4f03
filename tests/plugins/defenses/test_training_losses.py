"""Losses of adversarial training in closed form, and each without its own term."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bench.engine.problem import attack_once
from bench.plugin import Defense, Linf, TrainingBatch, cross_entropy
from plugins.defenses import logit_pairing
from plugins.defenses._losses import adversarial_loss, clean_loss
from plugins.defenses.cascade_training import cascade_loss
from plugins.defenses.fgsm_batch_training import random_length_step, weighted_loss
from plugins.defenses.fgsm_training import mixture_loss
from plugins.defenses.mart import boosted_cross_entropy, mart_loss
from plugins.defenses.mma_training import mma_loss
from plugins.defenses.trades import trades_loss
from tests.fixtures.known_models import digits
from tests.fixtures.training_family import (
    BALL,
    EPS,
    FGSM,
    gradients,
    near,
    recipe_of,
    registry,
    same,
    training_batch,
)

FAMILY = (
    "alp",
    "alp-probabilities",
    "cascade",
    "cascade-first",
    "clp",
    "clp-strangers",
    "fast-training",
    "fgsm-batch",
    "fgsm-mixture",
    "fgsm-training",
    "free-training",
    "mart",
    "mma",
    "trades",
)


# --- the registered recipes ------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_a_defense_names_its_paper_and_every_number_of_its_loss(name: str) -> None:
    defense: Defense = registry().find("defense", name).value
    recipe = recipe_of(name)
    assert defense.cite
    assert defense.quick == (name in ("fgsm-mixture", "fgsm-training", "trades"))
    bound = dict(recipe.loss.keywords) if isinstance(recipe.loss, partial) else {}
    if recipe.augment is not None:
        assert isinstance(recipe.augment, partial)
        bound |= recipe.augment.keywords
    bound.pop("eps", None)  # part of the ball, which is digested separately
    assert bound == recipe.options


@pytest.mark.parametrize("name", FAMILY)
def test_inner_attacks_use_the_radius_of_the_threat_model(name: str) -> None:
    inner = recipe_of(name).inner
    if inner is not None:
        reach = 2 if name == "mma" else 1
        assert inner.ball == Linf(EPS * reach)


@pytest.mark.parametrize(
    ("loss", "neutral"),
    [
        pytest.param(
            partial(logit_pairing.adversarial_pairing, strength=0.0, form="logits"),
            adversarial_loss,
            marks=pytest.mark.row("D11"),
        ),
        pytest.param(
            partial(logit_pairing.clean_pairing, strength=0.0, form="probabilities"),
            clean_loss,
            marks=pytest.mark.row("D12"),
        ),
        pytest.param(
            partial(logit_pairing.random_pairing, strength=0.0),
            clean_loss,
            marks=pytest.mark.row("D12"),
        ),
        pytest.param(
            partial(mart_loss, strength=0.0),
            lambda given: boosted_cross_entropy(given.model(given.adv), given.y),
            marks=pytest.mark.row("D15"),
        ),
        pytest.param(partial(mma_loss, weight=1.0), clean_loss, marks=pytest.mark.row("D14")),
        pytest.param(
            partial(cascade_loss, alpha=0.25, pivot=0.0),
            partial(mixture_loss, alpha=0.25),
            marks=pytest.mark.row("D19"),
        ),
    ],
    ids=["alp", "clp", "clp-strangers", "mart", "mma", "cascade"],
)
def test_without_its_own_term_a_loss_is_the_plain_one_to_the_bit(
    loss: Callable[[TrainingBatch], Tensor], neutral: Callable[[TrainingBatch], Tensor]
) -> None:
    assert torch.equal(loss(training_batch()), neutral(training_batch()))
    assert same(gradients(loss), gradients(neutral))


# --- losses on fixed logits ------------------------------------------------------------------

CLEAN = (0.5, 0.3, 0.2)
MOVED = (0.25, 0.5, 0.25)


def fixed(clean: tuple[float, ...], moved: tuple[float, ...], label: int = 0) -> TrainingBatch:
    """A training batch whose model returns one value for x and another for x'."""
    x, adv = (torch.tensor(p, dtype=torch.float64).log().view(1, 3, 1, 1) for p in (clean, moved))
    return TrainingBatch(nn.Flatten(), x, torch.tensor([label]), adv)


KL = 0.5 * math.log(2) + 0.3 * math.log(0.6) + 0.2 * math.log(0.8)
APART = 0.25**2 + 0.2**2 + 0.05**2
APART_LOGITS = math.log(2) ** 2 + math.log(0.6) ** 2 + math.log(0.8) ** 2
TABLE: dict[str, tuple[Callable[[TrainingBatch], Tensor], float]] = {
    "standard": (adversarial_loss, math.log(4)),
    "alp": (
        partial(logit_pairing.adversarial_pairing, strength=2.0, form="probabilities"),
        math.log(4) + 2 * APART,
    ),
    "alp-logits": (
        partial(logit_pairing.adversarial_pairing, strength=2.0, form="logits"),
        math.log(4) + 2 * APART_LOGITS,
    ),
    "clp": (
        partial(logit_pairing.clean_pairing, strength=2.0, form="probabilities"),
        math.log(2) + 2 * APART,
    ),
    "trades": (partial(trades_loss, beta=3.0), math.log(2) + 3 * KL),
    "mma": (partial(mma_loss, weight=0.0), math.log(4)),
    "mart": (partial(mart_loss, strength=5.0), math.log(4) - math.log(0.5) + 5 * KL * 0.5),
}


@pytest.mark.row("RP06", "D11", "D12", "D13", "D14", "D15")
@pytest.mark.parametrize("name", TABLE)
def test_the_loss_table_on_fixed_probabilities(name: str) -> None:
    loss, expected = TABLE[name]
    found = loss(fixed(CLEAN, MOVED))
    assert found.shape == (1,)
    assert float(found) == pytest.approx(expected, rel=1e-12)


# --- D06: the weighted batch -----------------------------------------------------------------


def halves(given: TrainingBatch) -> tuple[Tensor, Tensor]:
    """J of the clean rows and of the adversarial ones, with lengths drawn from seed 1."""
    torch.manual_seed(1)
    moved = random_length_step(given.x[16:], given.adv[16:], BALL.radius)
    logits = given.model(torch.cat([given.x[:16], moved]))
    losses = cross_entropy(logits, given.y)
    return losses[:16], losses[16:]


def drawn(given: TrainingBatch, weight: float, share: float = 0.5) -> Tensor:
    torch.manual_seed(1)
    return weighted_loss(given, weight, share, BALL.radius)


@pytest.mark.row("D06")
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 4.0])
def test_the_weight_is_in_numerator_and_denominator(weight: float) -> None:
    clean, moved = halves(training_batch())
    expected = (clean.sum() + weight * moved.sum()) / (16 + weight * 16)
    assert torch.allclose(drawn(training_batch(), weight), expected, rtol=1e-6)


@pytest.mark.row("D06")
def test_weight_one_is_the_plain_mean_and_share_zero_is_clean_training() -> None:
    assert torch.equal(drawn(training_batch(), 1.0), torch.cat(halves(training_batch())).mean())
    assert torch.equal(drawn(training_batch(), 0.3, share=0.0), clean_loss(training_batch()).mean())
    plain = gradients(lambda given: drawn(given, 0.3, share=0.0))
    assert near(plain, gradients(clean_loss))


@pytest.mark.row("D06")
def test_each_adversarial_image_is_fgsm_with_its_own_radius() -> None:
    model, x, y, adv = training_batch()[:4]
    torch.manual_seed(0)
    moved = random_length_step(x, adv, BALL.radius)
    for row in range(0, 32, 7):
        reach = Fraction(float((moved[row] - x[row]).abs().max()))
        assert 0 < reach <= EPS + Fraction(1, 10**6)
        one = slice(row, row + 1)
        alone = attack_once(
            FGSM, model, x[one], y[one], Linf(reach), seed=0, example=torch.arange(1)
        )
        assert torch.allclose(moved[one], alone, atol=1e-6)


@pytest.mark.row("D06")
def test_the_radius_is_normal_and_cut_at_twice_its_deviation() -> None:
    x = torch.full((20000, 1, 1, 1), 0.5)
    torch.manual_seed(0)
    radius = (random_length_step(x, x + 0.2, 0.2) - x).flatten()
    assert radius.min() >= 0 and radius.max() <= 0.2
    for share in (0.25, 0.5, 0.75):
        expected = math.erf(2 * share / math.sqrt(2)) / math.erf(2 / math.sqrt(2))
        assert float((radius < 0.2 * share).float().mean()) == pytest.approx(expected, abs=0.015)


# --- D11, D12: pairing -----------------------------------------------------------------------


@pytest.mark.row("D11")
def test_the_pairing_distance_of_probabilities_ignores_a_shift_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(50, 10, generator=generator)
    assert logit_pairing.squared_distance(one, one + 3, "logits") == pytest.approx(
        torch.full((50,), 90.0)
    )
    assert logit_pairing.squared_distance(one, one + 3, "probabilities").max() < 1e-10
    assert (logit_pairing.squared_distance(one, -one, "probabilities") <= 2).all()


@pytest.mark.row("D12")
def test_random_pairs_use_each_image_once_and_never_with_itself() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0], [5.0, 1.0]]).view(4, 2, 1, 1)
    given = TrainingBatch(nn.Flatten(), logits, torch.tensor([0, 1, 0, 1]), logits)
    apart = logit_pairing.random_pairing(given, 1.0) - clean_loss(given)
    assert torch.allclose(apart, torch.tensor([25.0, 4.0, 4.0, 25.0]), atol=1e-5)


@pytest.mark.row("D12")
def test_random_pairing_trains_on_noisy_images() -> None:
    made_by = recipe_of("clp-strangers")
    assert made_by.augment is not None
    assert made_by.inner is None
    x = torch.full((2000, 1, 8, 8), 0.5)
    torch.manual_seed(0)
    noise = made_by.augment(x) - x
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert 0.22 < float(noise.std()) < 0.25, "0.25, cut at the box"
    assert made_by.augment(digits(64)[0]).min() == 0


# --- D14: MMA --------------------------------------------------------------------------------


@pytest.mark.row("D14")
def test_the_mma_loss_treats_wrong_boundary_and_safe_images_differently() -> None:
    loss = partial(mma_loss, weight=0.0)
    wrong, other = (0.2, 0.5, 0.3), (0.1, 0.2, 0.7)
    assert float(loss(fixed(wrong, other))) == pytest.approx(-math.log(0.2))
    assert float(loss(fixed(wrong, CLEAN))) == pytest.approx(-math.log(0.2))
    assert float(loss(fixed(CLEAN, other))) == pytest.approx(-math.log(0.1))
    assert float(loss(fixed(CLEAN, (0.4, 0.3, 0.3)))) == 0
    third = mma_loss(fixed(CLEAN, other), weight=1 / 3)
    assert float(third) == pytest.approx(math.log(2) / 3 + 2 / 3 * math.log(10))


# --- D15: MART -------------------------------------------------------------------------------


@pytest.mark.row("D15")
def test_the_boosted_cross_entropy_is_the_paper_s_sum_and_at_least_the_plain_one() -> None:
    logits = 4 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0)).double()
    label = torch.arange(500) % 10
    p = logits.softmax(1)
    own = p.gather(1, label[:, None])[:, 0]
    rival = p.scatter(1, label[:, None], 0).amax(1)
    expected = -own.log() - (1 - rival).log()
    assert torch.allclose(boosted_cross_entropy(logits, label), expected, rtol=1e-9)
    assert (boosted_cross_entropy(logits, label) >= cross_entropy(logits, label)).all()
    assert torch.isfinite(boosted_cross_entropy(100 * logits, label)).all()


@pytest.mark.row("D15")
def test_the_divergence_is_weighted_by_the_probability_of_an_error() -> None:
    sure = (1 - 2e-12, 1e-12, 1e-12)

    def steady(label: int) -> float:
        given = fixed(sure, MOVED, label)
        return float((mart_loss(given, 5.0) - mart_loss(given, 0.0)) / 5)

    apart = sum(p * math.log(p / q) for p, q in zip(sure, MOVED, strict=True))
    assert apart > 1
    assert steady(0) == pytest.approx(0, abs=1e-9)
    assert steady(1) == pytest.approx(apart, rel=1e-9)


# --- D19: the cascade ------------------------------------------------------------------------


@pytest.mark.row("D19")
def test_the_clean_embedding_has_no_gradient_from_the_distance() -> None:
    def distance(given: TrainingBatch) -> Tensor:
        return cascade_loss(given, 0.5, 2.0) - cascade_loss(given, 0.5, 0.0)

    def pulled(given: TrainingBatch) -> Tensor:
        assert isinstance(given.model, nn.Sequential)
        with torch.no_grad():
            pivot = given.model[:-1](given.x)
        moved = given.model[:-1](given.adv) + 0 * given.model(given.adv).sum()
        apart: Tensor = 2 * (moved - pivot).square().sum(1)
        return apart

    assert torch.allclose(
        distance(training_batch()), pulled(training_batch()), rtol=1e-3, atol=1e-5
    )
    assert near(gradients(distance), gradients(pulled))


@pytest.mark.row("D19")
def test_the_cascade_averages_the_losses_of_both_kinds_of_images() -> None:
    given = training_batch()
    stored = (given.x + 0.1).clamp(0, 1)
    both = cascade_loss(given._replace(transferred=stored), 0.25, 1e-2)
    each = [cascade_loss(given._replace(adv=adv), 0.25, 1e-2) for adv in (given.adv, stored)]
    assert torch.allclose(both, (each[0] + each[1]) / 2, rtol=1e-5)
