"""Parametric perturbation sets: their points, and the ids of their threat models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.plugin import ParametricSet, clamp_straight_through
from bench.threats.elastic import ElasticField
from bench.threats.patch import Patch
from bench.threats.random_numbers import KeyedRandomNumbers, example_key
from bench.threats.random_patch import RandomPatch
from bench.threats.spatial import RotationTranslation
from bench.threats.threat_model import ThreatModel

SIZES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 7)]
ROTATION = RotationTranslation(degrees=30.0, pixels=1.0)


def random_images(shape: tuple[int, ...], n: int = 4) -> Tensor:
    """Random images [n, *shape]."""
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def draws(n: int) -> KeyedRandomNumbers:
    """Keyed random numbers of n examples."""
    none = torch.zeros(n, dtype=torch.int64)
    return KeyedRandomNumbers(example_key(0, "test", torch.arange(n), none), none)


@dataclass(frozen=True)
class Brightness(ParametricSet):
    """A change of all pixels by up to a fifth."""

    name = "brightness"

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """One parameter."""
        return (1,)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W]."""
        return clamp_straight_through(x + 0.2 * adv[:, :, None, None])


@pytest.mark.parametrize("shape", SIZES)
def test_the_start_gives_the_clean_image_to_the_bit(shape: tuple[int, ...]) -> None:
    x = random_images(shape)
    x[0] = 0
    x[1] = 1
    for ball in (ROTATION, Brightness(), ElasticField(), Patch(3, 4)):
        assert torch.equal(ball.apply(ball.start(x), x), x)
        assert ball.contains(ball.start(x), x).all()
        assert (ball.distance(ball.start(x), x) == 0).all()


def test_points_are_sampled_projected_and_moved_within_the_edge() -> None:
    x = random_images((1, 8, 8), 64)
    ball = ROTATION.scaled(2)
    points = ball.sample(x, draws(64))
    assert points.shape == (64, 3) and ball.contains(points, x).all()
    assert points.abs().amax() > 1.8 and points.mean().abs() < 0.3
    far = 5 * torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    assert not ball.contains(far, x).all()
    inside = ball.project(far, x)
    assert ball.contains(inside, x).all() and torch.equal(ball.project(inside, x), inside)
    gradient = torch.ones(64, 3)
    step = ball.ascend(ball.start(x), gradient, torch.arange(64) / 64, x)
    assert torch.allclose(step, 2 * torch.arange(64)[:, None].expand(-1, 3) / 64)
    assert torch.equal(ball.farthest(-gradient, x), torch.full((64, 3), -2.0))


def test_a_point_beyond_the_edge_is_outside() -> None:
    x = random_images((1, 8, 8), 3)
    points = torch.tensor([[1.0, 0, 0], [0, 1.001, 0], [0, 0, -1.1]])
    assert ROTATION.contains(points, x).tolist() == [True, False, False]


def test_the_radius_is_an_exact_fraction() -> None:
    with pytest.raises(ValueError, match="write a fraction"):
        RotationTranslation(eps=0.5)  # type: ignore[arg-type]
    assert ROTATION.scaled(3).radius == 3.0


def test_every_parameter_of_a_set_is_part_of_the_id_of_its_threat_model() -> None:
    sets = [
        ROTATION, RotationTranslation(degrees=31.0, pixels=1.0),
        RotationTranslation(degrees=30.0, pixels=2.0), ROTATION.scaled(2),
        RotationTranslation(eps=Fraction(1, 2), degrees=30.0, pixels=1.0), Brightness(),
    ]  # fmt: skip
    ids = {ThreatModel("a", "digits", ball).id for ball in sets}
    assert len(ids) == len(sets)
    assert ThreatModel("b", "digits", ROTATION).id in ids


@pytest.mark.parametrize(
    ("kind", "values"),
    [(RotationTranslation, {"degrees": -1.0}), (RotationTranslation, {"pixels": math.nan}),
     (ElasticField, {"nodes": 0}), (ElasticField, {"nodes": 65}), (Patch, {"top": -1}),
     (Patch, {"height": 0}), (RandomPatch, {"smallest": 0.0}), (RandomPatch, {"size": 0}),
     (RandomPatch, {"degrees": math.inf})],
)  # fmt: skip
def test_sizes_without_meaning_are_refused(
    kind: type[ParametricSet], values: dict[str, float]
) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} of {kind.name} is"):
        kind(**values)  # type: ignore[arg-type]
