"""The set of patches at a fixed place."""

from __future__ import annotations

import pytest
import torch

from bench.core.outcomes import Verdict
from bench.threats.patch import Patch
from plugins.attacks.pgd import PGD
from plugins.attacks.random_noise import RandomNoise
from tests.engine.single_run import SingleRun
from tests.fixtures.known_models import digits, small_cnn
from tests.threats.test_parametric import random_images

COUNT = 100


def broken(attack: PGD | RandomNoise, size: int) -> int:
    """Broken digits under a square patch in the middle."""
    ball = Patch(size, size, 4 - size // 2, 4 - size // 2)
    found = SingleRun(attack, ball, model=small_cnn(), count=COUNT).run()
    return int((found.outcomes.verdict == Verdict.BROKEN).sum())


def test_pixels_outside_the_rectangle_are_equal_to_the_bit() -> None:
    x = random_images((3, 8, 8))
    patch = Patch(2, 4, 5, 1)
    image = patch.apply(2 * torch.rand(4, 3, 2, 4) - 1, x)
    changed = (image != x).any(0).any(0)
    assert changed[5:7, 1:5].all()
    changed[5:7, 1:5] = False
    assert not changed.any()


def test_the_edges_are_black_and_white() -> None:
    x = random_images((1, 8, 8))
    patch = Patch(8, 8)
    for value, pixel in ((-1.0, 0.0), (1.0, 1.0)):
        assert torch.allclose(patch.apply(torch.full_like(x, value), x), torch.full_like(x, pixel))


def test_a_patch_that_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"3 x 3 pixels at \(6, 0\) does not fit into images of 8"):
        Patch(top=6).start(digits(2)[0])


def test_success_rises_with_the_area_and_is_far_above_that_of_a_random_patch() -> None:
    found = [broken(PGD(), size) for size in (1, 2, 3, 4)]
    assert found == sorted(found) and found[0] < found[-1]
    assert found[2] > 2 * broken(RandomNoise(), 3)
