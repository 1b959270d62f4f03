"""Training with rotations and translations: its set, its control, and what each one gains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import InnerAttack, RotationTranslation
from bench.registry.registry import Registry
from plugins.attacks.rotation_grid import RotationGrid
from plugins.defenses._losses import adversarial_loss, clean_loss
from plugins.defenses.spatial_training import MOVES, bench_defenses, random_move
from tests.fixtures.protocol_dg import DigitsTestbed, pgd, recipe

DEFENSES = {defense.name: defense for defense in bench_defenses()}
ROTATIONS = RotationTranslation(degrees=30.0, pixels=0.0)


def test_the_inner_attack_names_the_set_of_the_threat_model() -> None:
    inner = DEFENSES["spatial-training"].recipe.inner  # type: ignore[union-attr]
    assert isinstance(inner, InnerAttack)
    assert inner.ball == MOVES == Registry.without_submissions().find(
        "threat", "digits-rotation"
    ).value.ball  # fmt: skip
    assert inner.attack == RotationGrid.name and RotationGrid(**inner.options).steps == 45
    control = DEFENSES["spatial-augmented"].recipe
    assert control is not None and control.inner is None and control.augment is random_move


def test_a_random_move_is_a_point_of_the_set_for_each_image() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(300, -1, -1, -1)
    torch.manual_seed(0)
    moved = random_move(x)
    assert moved.shape == x.shape and moved.min() >= 0 and moved.max() <= 1
    assert len(torch.unique(moved.flatten(1), dim=0)) == 300
    torch.manual_seed(0)
    points = 2 * torch.rand(300, 3) - 1
    assert torch.equal(moved, MOVES.apply(points, x))
    assert points.amin() < -0.98 and points.amax() > 0.98, "the whole set is drawn from"


def left_by_rotations(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Examples that are right at each of 31 angles; the clean image is one of them."""
    right = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        for angle in torch.linspace(-1, 1, 31):
            point = torch.zeros(len(x), 3)
            point[:, 0] = angle
            right &= model(ROTATIONS.apply(point, x)).argmax(1) == y
    return int(right.sum())


@pytest.mark.slow
@pytest.mark.row("P02", "G09")
def test_spatial_training_gains_far_more_under_rotation_than_linf_training(
    tmp_path: Path,
) -> None:
    testbed = DigitsTestbed(tmp_path)
    grid = InnerAttack("rotation-grid", ROTATIONS, {"angles": 5, "rights": 1, "downs": 1})
    recipes = {
        "standard": recipe(clean_loss, epochs=30),
        "linf": recipe(adversarial_loss, inner=pgd(7), epochs=30),
        "spatial": recipe(adversarial_loss, inner=grid, epochs=30),
    }
    left = {
        name: left_by_rotations(testbed.train(name, made), testbed.x, testbed.y)
        for name, made in recipes.items()
    }
    assert left["spatial"] > 400
    assert left["linf"] - left["standard"] < (left["spatial"] - left["standard"]) / 4
