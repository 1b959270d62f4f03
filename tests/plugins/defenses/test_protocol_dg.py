"""Known results of adversarial training, reproduced on the digits testbed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Tensor

from bench.contract.attack_checks import why_steps_do_not_cross
from bench.plugin import FreeTraining, InnerAttack, Linf, Recipe, TrainingBatch, cross_entropy
from bench.training import loop
from bench.training.state import TrainingState
from plugins.attacks.pgd import PGD
from plugins.defenses import (
    cascade_training,
    fgsm_batch_training,
    fgsm_training,
    logit_pairing,
    mart,
    mma_training,
    trades,
)
from plugins.defenses._losses import adversarial_loss, clean_loss
from tests.fixtures.protocol_dg import EPS, DigitsTestbed, fgsm, pgd, recipe, testbed

__all__ = ["testbed"]  # the fixture, which pytest finds here

pytestmark = pytest.mark.slow

WIDE = Fraction(3, 10)
BALL = Linf(EPS)
AGAINST_PGD = recipe(adversarial_loss, inner=pgd(7))
FREE = FreeTraining(BALL, replays=4)


def crossing(steps: int, length: float) -> InnerAttack:
    """PGD in the wide ball with steps of this length, in pixels."""
    return pgd(steps, WIDE, length / float(WIDE))


# --- training with one step ------------------------------------------------------------------


@pytest.mark.row("D07")
def test_fgsm_training_in_a_wide_ball_is_robust_to_one_step_only(testbed: DigitsTestbed) -> None:
    model = testbed.train("fgsm-wide", recipe(adversarial_loss, inner=fgsm(WIDE), epochs=100))
    one_step, many = testbed.robust(model, fgsm(WIDE)), testbed.robust(model, pgd(100, WIDE))
    assert testbed.clean(model) > 0.8
    assert one_step > 0.4
    assert many < 0.1, "the masking check for single-step attacks detects this gap"


@pytest.mark.row("D17")
def test_a_random_start_does_not_prevent_overfitting_to_large_steps(testbed: DigitsTestbed) -> None:
    """Catastrophic overfitting: .54 of the digits are robust to one step and none to a hundred."""
    long = InnerAttack("pgd", Linf(WIDE), {"steps": 1, "rate": 2.0})
    model = testbed.train("fast-wide", recipe(adversarial_loss, inner=long))
    assert testbed.clean(model) > 0.7
    assert testbed.robust(model, fgsm(WIDE)) > 0.4
    assert testbed.robust(model, pgd(100, WIDE)) < 0.05


@pytest.mark.row("D11", "RP10")
@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_weak_pairing_is_broken_by_steps_that_can_cross_the_ball(
    testbed: DigitsTestbed, form: str
) -> None:
    loss = partial(logit_pairing.adversarial_pairing, strength=2.0, form=form)
    model = testbed.train(f"alp-weak-{form}", recipe(loss, inner=fgsm(WIDE)))
    assert testbed.clean(model) > 0.8
    short = testbed.robust(model, crossing(10, 0.01))  # 10 * .01 < .3
    assert short > 0.25
    assert why_steps_do_not_cross(PGD(steps=10, rate=0.01 / float(WIDE)))
    for steps, length in ((10, 0.075), (40, 0.02), (1000, 0.01)):
        assert steps * length >= 2 * WIDE
        assert not why_steps_do_not_cross(PGD(steps=steps, rate=length / float(WIDE)))
        assert testbed.robust(model, crossing(steps, length)) < min(0.12, short / 3)


# --- free training and the place of the clamp ------------------------------------------------


def inside_the_graph(batch: TrainingBatch) -> Tensor:
    """-log p(y | clamp(x + d)), where a clamped pixel has no gradient."""
    return cross_entropy(batch.model(batch.adv.clamp(0, 1)), batch.y)


def unclamped(state: TrainingState, free: FreeTraining, x: Tensor) -> Tensor:
    """x + d without a clamp."""
    return (x + state.free_perturbation[: len(x)]).detach().requires_grad_()


def signed_step(state: TrainingState, free: FreeTraining, batch: TrainingBatch) -> None:
    """d after a signed step, inside the ball but not the box."""
    assert batch.adv.grad is not None
    moved = batch.adv.detach() - batch.x + free.ball.radius * batch.adv.grad.sign()
    state.free_perturbation[: len(moved)] = moved.clamp(-free.ball.radius, free.ball.radius)


@pytest.mark.row("D16")
def test_free_training_is_more_robust_with_the_clamp_outside_the_graph(
    testbed: DigitsTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 60 gradients an image, where PGD-7 training took 480."""
    made_by = recipe(adversarial_loss, inner=FREE, epochs=15)
    free = testbed.train("free", made_by)
    robust, pgd_7 = testbed.robust(free, pgd(200)), testbed.robust(reference(testbed), pgd(200))
    assert robust > pgd_7 - 0.1
    monkeypatch.setattr(loop, "apply_free_perturbation", unclamped)
    monkeypatch.setattr(loop, "update_free_perturbation", signed_step)
    wrong = testbed.train("free-inside", recipe(inside_the_graph, inner=FREE, epochs=15))
    assert testbed.clean(wrong) > 0.95
    assert testbed.robust(wrong, pgd(200)) < robust - 0.15


def reference(testbed: DigitsTestbed) -> torch.nn.Module:
    return testbed.train("pgd-7", AGAINST_PGD)


# --- the table of trainings ------------------------------------------------------------------


def paired(loss: Callable[..., Tensor], strength: float, form: str) -> Recipe:
    return recipe(partial(loss, strength=strength, form=form), inner=pgd(7))


def one_step(rate: float) -> InnerAttack:
    return InnerAttack("pgd", BALL, {"steps": 1, "rate": rate})


MIXED = partial(fgsm_training.mixture_loss, alpha=0.5)
EMBEDDED = partial(cascade_training.cascade_loss, alpha=0.5, pivot=1e-4)
STRONG: dict[str, tuple[pytest.MarkDecorator, Recipe]] = {
    "fgsm": (pytest.mark.row("D07"), recipe(adversarial_loss, inner=fgsm())),
    "mixture": (pytest.mark.row("D05"), recipe(MIXED, inner=fgsm())),
    "fast": (pytest.mark.row("D17"), recipe(adversarial_loss, inner=one_step(1.25))),
    "pgd-7": (pytest.mark.row("D08"), AGAINST_PGD),
    "trades": (
        pytest.mark.row("D13"),
        recipe(
            partial(trades.trades_loss, beta=3.0),
            inner=InnerAttack("pgd-kl", BALL, {"steps": 7, "rate": 2.5 / 7}),
        ),
    ),
    "alp": (pytest.mark.row("D11"), paired(logit_pairing.adversarial_pairing, 0.5, "logits")),
    "clp": (pytest.mark.row("D12"), paired(logit_pairing.clean_pairing, 5.0, "probabilities")),
    "mart": (pytest.mark.row("D15"), recipe(partial(mart.mart_loss, strength=5.0), inner=pgd(10))),
    "mma": (
        pytest.mark.row("D14"),
        recipe(
            partial(mma_training.mma_loss, weight=0.0),
            inner=InnerAttack("an-pgd", Linf(3 * EPS), {"climb": 10, "rate": 0.25, "search": 10}),
        ),
    ),
    "cascade-first": (pytest.mark.row("D19"), recipe(EMBEDDED, inner=fgsm())),
}
"""Every one stands some 60 points above standard training."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=row) for n, (row, _) in STRONG.items()])
def test_adversarial_training_is_robust_and_keeps_clean_accuracy(
    testbed: DigitsTestbed, name: str
) -> None:
    model = testbed.train(name, STRONG[name][1])
    standard = testbed.train("standard", recipe(clean_loss))
    assert testbed.robust(standard, pgd(200)) < 0.15
    assert testbed.clean(model) > 0.92
    assert testbed.robust(model, pgd(200)) > testbed.robust(standard, pgd(200)) + 0.4


@pytest.mark.row("D19")
def test_the_second_stage_of_the_cascade_changes_little_here(testbed: DigitsTestbed) -> None:
    """The paper's gain needs FGSM training that overfits; at this radius it does not."""
    testbed.train(*named("cascade-first"))
    stored = InnerAttack("bim", BALL)
    both = recipe(EMBEDDED, inner=fgsm(), teacher="cascade-first", transfer=stored)
    robust = testbed.robust(testbed.train("cascade", both), pgd(200))
    assert abs(robust - testbed.robust(testbed.train(*named("mixture")), pgd(200))) < 0.08


def named(name: str) -> tuple[str, Recipe]:
    return name, STRONG[name][1]


WEAK: dict[str, tuple[pytest.MarkDecorator, Recipe]] = {
    "fgsm-batch": (
        pytest.mark.row("D06"),
        recipe(
            partial(fgsm_batch_training.weighted_loss, weight=0.3, share=0.5, eps=BALL.radius),
            inner=fgsm(),
        ),
    ),
    "clp-strangers": (
        pytest.mark.row("D12"),
        recipe(
            partial(logit_pairing.random_pairing, strength=0.5),
            augment=partial(logit_pairing.add_noise, sigma=0.25),
        ),
    ),
}
"""Few, short steps or none at all: some 20 to 40 points above standard training."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=row) for n, (row, _) in WEAK.items()])
def test_weak_attacks_in_training_give_half_of_the_robustness(
    testbed: DigitsTestbed, name: str
) -> None:
    model = testbed.train(name, WEAK[name][1])
    standard = testbed.train("standard", recipe(clean_loss))
    assert testbed.clean(model) > 0.95
    robust = testbed.robust(model, pgd(200))
    assert (
        testbed.robust(standard, pgd(200)) + 0.12
        < robust
        < testbed.robust(reference(testbed), pgd(200)) - 0.1
    )


@pytest.mark.row("D13")
def test_more_weight_on_the_divergence_trades_accuracy_for_robustness(
    testbed: DigitsTestbed,
) -> None:
    inner = STRONG["trades"][1].inner
    low, high = (
        testbed.train(f"trades-{beta}", recipe(partial(trades.trades_loss, beta=beta), inner=inner))
        for beta in (0.3, 6.0)
    )
    assert testbed.clean(low) > testbed.clean(high)
    assert testbed.robust(high, pgd(200)) > testbed.robust(low, pgd(200)) + 0.05
