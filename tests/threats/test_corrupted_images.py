"""Corruptions of images: what each one does, on any size, the same for an image in any batch."""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from bench.core.corruptions import CORRUPTIONS, SEVERITIES
from bench.threats import corrupted_images
from bench.threats.corrupted_images import blur, brightness, contrast, corrupted, fog, jpeg, rain
from tests.fixtures.known_models import digits
from tests.threats.test_parametric import SIZES, random_images

ALL = [(kind, severity) for kind in CORRUPTIONS for severity in range(1, SEVERITIES + 1)]


def smooth(shape: tuple[int, int, int], n: int = 3) -> Tensor:
    """Images [n, *shape] of 8 bits that look more like pictures than noise does."""
    levels = blur(random_images(shape, n).double(), 0.06)
    return (levels * 255).round() / 255


@pytest.mark.parametrize("shape", SIZES)
def test_every_image_is_an_image_and_depends_on_its_own_row(shape: tuple[int, int, int]) -> None:
    x = random_images(shape, 5)
    for kind, severity in ALL:
        whole = corrupted(x, kind, severity)
        assert whole.shape == x.shape and whole.dtype == x.dtype
        assert whole.min() >= 0 and whole.max() <= 1 and not torch.equal(whole, x)
        assert torch.equal(corrupted(x[3:4], kind, severity), whole[3:4])
        assert torch.equal(corrupted(x.flip(0), kind, severity), whole.flip(0))
        assert torch.equal(corrupted(x.double(), kind, severity).float(), whole)
    assert torch.equal(corrupted(x, "fog", 0), x)


@pytest.mark.row("G17")
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_moves_the_images_farther(kind: str) -> None:
    x = digits(300)[0]
    moved = [float((corrupted(x, kind, s) - x).square().mean()) for s in range(SEVERITIES + 1)]
    assert moved[0] == 0
    assert all(less < more for less, more in pairwise(moved))


def test_the_noise_is_normal_and_of_one_image_alone() -> None:
    x = torch.full((1, 3, 64, 64), 0.5)
    sigma = corrupted_images.NOISE[1]
    noise = (corrupted(x, "gaussian-noise", 2) - x).flatten().double() / sigma
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert abs(float((noise.abs() < 1).double().mean()) - 0.6827) < 0.02
    assert abs(float((noise.abs() < 2).double().mean()) - 0.9545) < 0.01
    other = x.clone()
    other[0, 1, 5, 7] = 0.25
    again = (corrupted(other, "gaussian-noise", 2) - other).flatten().double() / sigma
    assert abs(float(torch.corrcoef(torch.stack([noise, again]))[0, 1])) < 0.05
    smaller = (corrupted(x, "gaussian-noise", 1) - x).flatten().double()
    assert torch.allclose(smaller / corrupted_images.NOISE[0], noise, atol=1e-4)


def test_the_blur_is_a_gaussian_that_keeps_the_light() -> None:
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[0, 0, 16, 16] = 1
    spread = blur(point, 0.06)[0, 0]
    assert float(spread.sum()) == pytest.approx(1)
    place = torch.arange(33, dtype=torch.float64) - 16
    sigma = 0.06 * 33
    for axis in (0, 1):
        variance = float((spread.sum(axis) * place**2).sum())
        assert variance == pytest.approx(sigma**2, rel=0.03)
    assert torch.equal(spread, spread.T) and torch.equal(spread, spread.flip(0))
    flat = torch.full((1, 2, 5, 9), 0.3, dtype=torch.float64)
    assert torch.allclose(blur(flat, 0.1), flat)


def test_contrast_and_brightness_are_affine() -> None:
    x = smooth((3, 16, 12))
    changed = contrast(x, 0.3)
    assert torch.allclose(changed.mean((1, 2, 3)), x.mean((1, 2, 3)))
    assert torch.allclose(changed.std((1, 2, 3)), 0.3 * x.std((1, 2, 3)))
    assert torch.equal(brightness(x, 0.2), x + 0.2)


def coded_by_pillow(x: Tensor, quality: int) -> Tensor:
    """The images [n, 1 or 3, H, W] through the JPEG files of Pillow, without subsampling."""
    read = []
    for image in (x * 255).round().byte():
        levels = image.movedim(0, 2).numpy()
        file = BytesIO()
        picture = Image.fromarray(levels[:, :, 0] if len(image) == 1 else levels)
        picture.save(file, "JPEG", quality=quality, subsampling=0)
        found = torch.from_numpy(np.array(Image.open(file)))
        read.append((found[None] if len(image) == 1 else found.movedim(2, 0)).double() / 255)
    return torch.stack(read)


@pytest.mark.parametrize("quality", [7, 25, 75])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 19, 30)])
def test_jpeg_is_what_a_jpeg_file_holds(shape: tuple[int, int, int], quality: int) -> None:
    x = smooth(shape, 40)
    found, expected = jpeg(x, quality), coded_by_pillow(x, quality)
    apart = (found - expected).abs() * 255
    # The coder of Pillow has a cosine transform in whole numbers: now and then a coefficient is
    # rounded to another step, which moves its block.
    blocks = max_pool2d(apart.amax(1, keepdim=True), 8, ceil_mode=True)
    assert float((blocks <= 2).double().mean()) > 0.5
    assert float(apart.mean()) < 0.15 * 255 * float((expected - x).abs().mean())


def test_the_best_quality_loses_less_than_a_level_and_two_channels_are_coded_alone() -> None:
    grey = smooth((1, 20, 12))
    assert float((jpeg(grey, 100) - grey).abs().max()) < 1.5 / 255
    two = torch.cat([grey, grey.flip(3)], 1)
    assert torch.equal(jpeg(two, 10)[:, :1], jpeg(grey, 10))


def test_fog_draws_to_its_light_by_a_smooth_share() -> None:
    x = torch.zeros(2, 1, 40, 40, dtype=torch.float64)
    x[1] = 1
    x[:, :, 0, 0] = 0.5
    lost = (fog(x, 0.5) - x) / (corrupted_images.FOG_LIGHT - x)
    inside = lost[:, :, 1:, 1:]
    assert inside.min() >= 0.25 - 1e-9 and inside.max() <= 0.5 + 1e-9
    assert inside.std() > 0.01, "it is denser in some places"
    assert (inside.diff(dim=2)).abs().max() < 0.06 and (inside.diff(dim=3)).abs().max() < 0.06
    assert torch.allclose(fog(x, 0.25) - x, (fog(x, 0.5) - x) / 2)


def test_rain_is_a_growing_number_of_bright_streaks() -> None:
    x = random_images((1, 64, 64), 6).double() * 0.5
    wet = [rain(x, (count, 0.5)) != x for count in (1, 6, 20)]
    assert (wet[1] | ~wet[0]).all() and (wet[2] | ~wet[1]).all()
    shares = [float(one.double().mean()) for one in wet]
    assert 0 < shares[0] < shares[1] < shares[2] < 0.7
    for image in wet[0]:
        rows, columns = image[0].any(1).sum(), image[0].any(0).sum()
        assert rows > columns, "one streak is higher than wide"
    covered = rain(x, (20, 1.0))
    assert torch.allclose(covered.amax((1, 2, 3)), torch.full((6,), 0.8, dtype=torch.float64))
