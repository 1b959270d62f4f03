"""Cropping, resizing and padding: matrices against torch's own interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from plugins.defenses._preprocessing import PreprocessedModel
from plugins.defenses._resampling import crop_matrix, pad_matrix, random_integer, resample
from plugins.defenses.crops import (
    CropEnsemble,
    center_crop,
    crop_and_resize,
    crop_side,
    random_crop,
)
from plugins.defenses.resize_pad import GREY, random_resize_pad
from tests.fixtures.known_models import digits, gaussian, linear


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return linear(gaussian(10, 64))


def stretched(x: Tensor, size: int) -> Tensor:
    """torch's interpolation of the same part."""
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


@pytest.mark.row("F03", "F13")
@pytest.mark.parametrize(("size", "inner"), [(8, 6), (8, 5), (28, 21), (32, 32)])
def test_a_crop_is_that_part_of_the_image_resized(size: int, inner: int) -> None:
    x = images(6, 2, size, size)
    top, left = (random_integer(x, 0, size - inner) for _ in range(2))
    rows, columns = crop_matrix(top, inner, size), crop_matrix(left, inner, size)
    for i, image in enumerate(resample(x, rows, columns)):
        part = x[i : i + 1, :, top[i] : top[i] + inner, left[i] : left[i] + inner]
        assert torch.allclose(image, stretched(part, size)[0], atol=1e-5)


@pytest.mark.row("D31")
@pytest.mark.parametrize(("size", "width"), [(8, 10), (28, 35), (32, 36)])
def test_a_padded_image_is_torch_s_resized_one_at_its_place(size: int, width: int) -> None:
    x = images(8, 3, size, size)
    inner = random_integer(x, size, width)
    top, left = (random_integer(x, 0, width - inner) for _ in range(2))
    rows, columns = (pad_matrix(start, inner, size, width) for start in (top, left))
    for i, image in enumerate(resample(x, rows, columns)):
        n, r, c = (int(number[i]) for number in (inner, top, left))
        expected = F.pad(stretched(x[i : i + 1], n), (c, width - n - c, r, width - n - r))
        assert torch.allclose(image, expected[0], atol=1e-5)


@pytest.mark.row("D31")
def test_the_padding_is_constant_and_the_rest_lies_within_the_image_s_range() -> None:
    white = random_resize_pad(torch.ones(64, 1, 8, 8), 10)
    near = ((white - 1).abs() < 1e-6) | (white == GREY)
    assert near.all()
    area = (white != GREY).flatten(1).sum(1)
    assert sorted(set(area.tolist())) == [64, 81, 100]


@pytest.mark.row("D31")
def test_without_padding_the_logits_are_those_of_the_network() -> None:
    x, _ = digits(64)
    still = PreprocessedModel(network(), lambda z: random_resize_pad(z, 8))
    assert torch.allclose(random_resize_pad(x, 8), x, atol=1e-7)
    assert torch.allclose(still(x), network()(x), atol=1e-4)


@pytest.mark.row("D31", "F03")
def test_random_integers_reach_both_ends_equally_often() -> None:
    torch.manual_seed(0)
    drawn = random_integer(torch.zeros(4000), 2, 5)
    count = drawn.bincount(minlength=6)
    assert count[:2].sum() == 0 and (count[2:] - 1000).abs().max() < 4 * 28
    high = torch.tensor([0, 3]).repeat(2000)
    bounded = random_integer(high, 0, high)
    assert (bounded <= high).all() and set(bounded.tolist()) == {0, 1, 2, 3}


@pytest.mark.row("D31")
def test_each_image_has_its_own_new_draw() -> None:
    x = images(1, 1, 8, 8).expand(64, 1, 8, 8)
    torch.manual_seed(0)
    first, second = random_resize_pad(x, 10), random_resize_pad(x, 10)
    assert len({tuple(image.flatten().tolist()) for image in first}) >= 10
    assert not torch.equal(first, second)


@pytest.mark.row("F03", "F13")
def test_a_crop_of_the_whole_is_the_image() -> None:
    x = images(4, 1, 8, 8)
    none = torch.zeros(4, dtype=torch.int64)
    assert torch.allclose(
        resample(x, crop_matrix(none, 8, 8), crop_matrix(none, 8, 8)), x, atol=1e-7
    )


@pytest.mark.row("F13")
@pytest.mark.parametrize("size", [8, 28, 32])
def test_the_centre_crop_does_not_depend_on_the_border(size: int) -> None:
    x = images(4, 1, size, size)
    centre = torch.ones(size, size, dtype=torch.bool)
    spare = size - crop_side(size)
    centre[spare // 2 : spare // 2 + crop_side(size), spare // 2 : spare // 2 + crop_side(size)] = (
        False
    )
    assert torch.equal(center_crop(x), center_crop(torch.where(centre, 1 - x, x)))
    assert not torch.equal(center_crop(x), center_crop(torch.where(centre, x, 1 - x)))
    assert torch.equal(
        center_crop(x), crop_and_resize(x, *(torch.tensor([spare // 2]) for _ in range(2)))
    )


class Brightness(nn.Module):
    """Two classes: dark and bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack([-bright, bright], 1)


@pytest.mark.row("F03")
def test_an_ensemble_returns_the_mean_probability_of_its_crops() -> None:
    x = images(16, 1, 8, 8)
    model = CropEnsemble(Brightness(), count=3)
    torch.manual_seed(0)
    answer = model(x)
    torch.manual_seed(0)
    crops = [Brightness()(random_crop(x)).softmax(1) for _ in range(3)]
    assert torch.allclose(answer.softmax(1), torch.stack(crops).mean(0), atol=1e-6)


@pytest.mark.row("F03")
def test_more_crops_vary_less() -> None:
    x = images(16, 1, 8, 8)
    torch.manual_seed(0)

    def spread(crops: int) -> float:
        model = CropEnsemble(Brightness(), crops)
        answers = torch.stack([model(x).softmax(1)[:, 0] for _ in range(40)])
        return float(answers.std(0).mean())

    assert spread(16) < 0.4 * spread(1)


@pytest.mark.row("F03", "F13", "D31")
def test_the_gradient_is_the_transposed_matrices() -> None:
    x, weight = images(5, 1, 8, 8), torch.randn(5, 1, 10, 10)
    rows, columns = torch.randn(5, 10, 8), torch.randn(5, 10, 8)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((resample(leaf, rows, columns) * weight).sum(), leaf)
    assert torch.allclose(slope, resample(weight, rows.mT, columns.mT), atol=1e-5)
    found = (
        ModelAccess(PreprocessedModel(network(), center_crop))
        .gradient(x, lambda z: z[:, 0])
        .gradient
    )
    assert found.flatten(1).any(1).all()
