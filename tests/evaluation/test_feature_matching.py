"""Feature matching: with the identity it is a projection, and its distances never rise."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.evaluation.feature_matching import match_features
from bench.threats.delta import LinfDelta
from bench.threats.lp_ball import LpBall
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from tests.fixtures.known_models import digits, small_cnn
from tests.threats.test_parametric import random_images

BALLS = (Linf(Fraction(1, 10)), L2(Fraction(1)), L1(Fraction(2)), LpBall(Fraction(1, 2), 3.0))


def pixels(x: Tensor) -> Tensor:
    """The identity."""
    return x


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """32 digits, for each a guide that the network gives another class, and that class."""
    x, _ = digits(64)
    labels = small_cnn()(x).argmax(1)
    guides = [int((labels != own).nonzero()[7 + row % 20]) for row, own in enumerate(labels[:32])]
    return x[:32], x[guides], labels[guides]


@pytest.mark.row("A21")
@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.name)
def test_with_the_identity_the_result_is_the_guide_projected_onto_the_set(
    ball: PerturbationSet,
) -> None:
    images = random_images((1, 8, 8), 20)
    x, guide = images[:10], images[10:]
    found, _ = match_features(pixels, x, guide, ball, steps=6)
    assert torch.allclose(found, ball.project(guide, x), atol=1e-6)


@pytest.mark.row("A21")
@pytest.mark.parametrize("ball", [*BALLS[:2], LinfDelta(eps=Fraction(1, 5))], ids=lambda b: b.name)
def test_the_distance_never_rises_and_falls_for_every_image(ball: PerturbationSet) -> None:
    x, guide, _ = pairs()
    representation = small_cnn()
    found, distances = match_features(representation, x, guide, ball, steps=30)
    assert (distances.diff(dim=0) <= 0).all() and (distances[-1] < distances[0]).all()
    image = ball.apply(found, x)
    last = (representation(image) - representation(guide)).norm(dim=1)
    assert torch.allclose(distances[-1], last, rtol=1e-3, atol=1e-4)
    assert ball.contains(found, x).all()
    few, _ = match_features(representation, x, guide, ball, steps=3)
    alone, _ = match_features(representation, x[4:5], guide[4:5], ball, steps=3)
    assert torch.allclose(alone, few[4:5], atol=1e-4)


@pytest.mark.row("A21")
def test_matched_features_give_most_images_the_class_of_the_guide() -> None:
    x, guide, label = pairs()
    found, _ = match_features(small_cnn(), x, guide, Linf(Fraction(3, 10)), steps=100)
    reached = (small_cnn()(found).argmax(1) == label).float().mean()
    assert reached > 0.8, float(reached)
