"""FGSM with the predicted label and the steps towards the least likely class."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bench.engine.model_access import ModelAccess
from bench.plugin import Access, Attack, cross_entropy
from bench.threats.norms import L2, Linf
from plugins.attacks.fast_gradient import FastGradient
from plugins.attacks.fgsm_predicted import PredictedFGSM
from plugins.attacks.least_likely import LeastLikely, bench_attacks
from tests.fixtures.known_models import (
    digits,
    last_iterate,
    rows_of,
    run_and_judge,
    small_cnn,
)

BALL = Linf(Fraction(1, 5))
LEAST_LIKELY: dict[str, Attack] = {
    attack.name: attack for attack in bench_attacks() if isinstance(attack, LeastLikely)
}
each_attack = pytest.mark.parametrize(
    "attack", [PredictedFGSM(), *LEAST_LIKELY.values()], ids=lambda attack: str(attack.name)
)


@pytest.mark.row("E18", "A17")
@each_attack
def test_the_true_label_is_not_used(attack: Attack) -> None:
    x, y = digits(64)
    one, other = (
        last_iterate(attack, rows_of(attack, small_cnn(), x, label, BALL))
        for label in (y, (y + 1) % 10)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, x)


@pytest.mark.row("E18")
def test_with_a_right_prediction_it_is_fgsm_and_with_a_wrong_one_it_is_not() -> None:
    x, y = digits(64)
    fgsm, attack = FastGradient("fgsm", ("Linf",), ""), PredictedFGSM()
    for label, same in (
        (ModelAccess(small_cnn()).logits(x).argmax(1), True),
        ((y + 1) % 10, False),
    ):
        images = [
            last_iterate(one, rows_of(one, small_cnn(), x, label, BALL)) for one in (fgsm, attack)
        ]
        assert torch.equal(*images) is same


@pytest.mark.row("A17")
def test_a_single_step_descends_the_loss_of_the_least_likely_class() -> None:
    x, y = digits(64)
    attack = LEAST_LIKELY["step-ll"]
    rows = rows_of(attack, small_cnn(), x, y, BALL)
    target = ModelAccess(small_cnn()).logits(x).argmin(1)
    slope = ModelAccess(small_cnn()).gradient(x, lambda z: cross_entropy(z, target)).gradient
    assert torch.equal(last_iterate(attack, rows), BALL.project(x - 0.2 * slope.sign(), x))


@pytest.mark.row("A17")
@pytest.mark.parametrize("ball", [BALL, L2(Fraction(2))], ids=["Linf", "L2"])
def test_ten_steps_come_nearer_to_the_least_likely_class_than_one(ball: Linf | L2) -> None:
    x, y = digits(64)
    target = ModelAccess(small_cnn()).logits(x).argmin(1)
    losses = [
        cross_entropy(ModelAccess(small_cnn()).logits(image), target).mean()
        for image in (
            x,
            *(
                last_iterate(attack, rows_of(attack, small_cnn(), x, y, ball))
                for attack in LEAST_LIKELY.values()
            ),
        )
    ]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.row("A17")
def test_the_least_likely_class_is_a_worse_target_than_any() -> None:
    x, y = digits(96)
    ball = Linf(Fraction(15, 255))
    fgsm, one = (
        run_and_judge(attack, small_cnn(), x, y, ball, access=Access.GRADIENTS).broken.sum()
        for attack in (FastGradient("fgsm", ("Linf",), ""), LEAST_LIKELY["step-ll"])
    )
    assert one < fgsm
