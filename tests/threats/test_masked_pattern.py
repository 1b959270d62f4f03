"""The set of printed patterns on a region: mask, colours, the clean image and gradients."""

from __future__ import annotations

import pytest
import torch

from bench.threats.masked_pattern import REGIONS, MaskedPattern
from tests.threats.test_parametric import SIZES, draws, random_images


@pytest.mark.row("P04", "P05")
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("shape", SIZES)
def test_pixels_outside_the_region_are_equal_to_the_bit(
    region: str, shape: tuple[int, ...]
) -> None:
    ball, x = MaskedPattern(region, top=0.0, height=1.0), random_images(shape)
    mask = ball.mask(x)
    assert torch.equal(ball.apply(ball.start(x), x), x)
    points = ball.sample(x, draws(4))
    image = ball.apply(points, x)
    outside = ~mask.expand_as(x)
    assert torch.equal(image[outside], x[outside])
    inside = mask.expand_as(x)
    assert torch.equal(image[inside], ((points + 1) / 2)[inside])
    assert (image != x)[inside].all() and int(mask.sum()) > 0
    assert outside.any() or region == "rectangle"


@pytest.mark.row("P04")
def test_one_pattern_is_the_same_on_every_image() -> None:
    ball, x = MaskedPattern("glasses"), random_images((3, 28, 28), 5)
    pattern = ball.sample(x[:1], draws(1))
    image = ball.apply(pattern.expand(5, -1, -1, -1), x)
    worn = image[:, :, ball.mask(x)]
    assert torch.equal(worn, worn[:1].expand_as(worn))
    assert torch.equal(ball.apply(pattern, x[3:4]), image[3:4])


def test_the_glasses_have_two_rims_of_the_same_shape() -> None:
    mask = MaskedPattern("glasses").mask(random_images((1, 28, 28)))
    assert torch.equal(mask, mask.flip(1)) and torch.equal(mask, mask.flip(0))
    assert mask[14, 13:15].all(), "a bridge joins the rims"
    assert not mask[13:15, 6:9].any() and not mask[:7].any(), "the lenses and the rest are free"


def test_the_rectangle_has_its_place_and_size() -> None:
    mask = MaskedPattern("rectangle", 0.25, 0.5, 0.25, 0.125).mask(random_images((1, 8, 8)))
    assert mask.nonzero().tolist() == [[2, 4], [3, 4]]


def test_the_gradient_of_a_pixel_in_the_region_reaches_the_pattern_even_at_the_clean_image() -> (
    None
):
    ball, x = MaskedPattern("stickers"), random_images((1, 28, 28), 3)
    for start in (ball.start(x), ball.sample(x, draws(3))):
        leaf = start.clone().requires_grad_()
        torch.autograd.backward(ball.apply(leaf, x).sum())
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, 0.5 * ball.mask(x).expand_as(x).float())


def test_a_region_without_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="region is 'hat'; use one of glasses"):
        MaskedPattern("hat")
    with pytest.raises(ValueError, match="top of masked-pattern is 2"):
        MaskedPattern("glasses", top=2.0)
    with pytest.raises(ValueError, match="has no pixel: choose a larger size"):
        MaskedPattern("stickers", height=0.01).start(random_images((1, 8, 8)))
