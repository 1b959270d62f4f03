"""The set of patches at a random place of each image."""

from __future__ import annotations

import pytest
import torch

from bench.threats.random_patch import RandomPatch, content_key
from tests.fixtures.known_models import digits
from tests.threats.test_parametric import random_images


def colour(n: int = 6) -> torch.Tensor:
    """Images [n, 3, 32, 32] of 8 bits."""
    return (random_images((3, 32, 32), n) * 255).round() / 255


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_a_zero_patch_is_the_clean_image_and_the_edges_are_black_and_white(degrees: float) -> None:
    ball, x = RandomPatch(size=6, smallest=0.8, largest=1.3, degrees=degrees), colour()
    assert torch.equal(ball.apply(ball.start(x), x), x)
    inside = ball.places(x).inside[:, None].expand_as(x)
    for value, pixel in ((-1.0, 0.0), (1.0, 1.0)):
        image = ball.apply(torch.full_like(ball.start(x), value), x)
        assert torch.allclose(image[inside], torch.tensor(pixel))
        assert torch.equal(image[~inside], x[~inside])


def test_an_upright_patch_is_copied_pixel_by_pixel() -> None:
    ball, x = RandomPatch(size=5), colour()
    patch = torch.where(random_images((3, 5, 5), 6) > 0.5, 1.0, -1.0)
    image = ball.apply(patch, x)
    for row, covered in enumerate(ball.places(x).inside):
        assert int(covered.sum()) == 25
        top, left = (int(torch.where(covered.any(1 - axis))[0].min()) for axis in (0, 1))
        part = image[row, :, top : top + 5, left : left + 5]
        assert torch.allclose(part, (patch[row] + 1) / 2, atol=1e-6)


def test_places_depend_on_the_image_and_the_draw_alone() -> None:
    ball, x = RandomPatch(size=3, degrees=10.0), digits(300)[0]
    inside = ball.places(x).inside
    assert torch.equal(ball.places(x[100:120]).inside, inside[100:120])
    assert torch.equal(ball.places(x.double()).inside, inside)
    other = ball.drawn(1).places(x).inside
    assert (other != inside).flatten(1).any(1).float().mean() > 0.8
    assert ball.drawn(1).draw == 1 and ball.drawn(0) == ball
    reached = inside.any(0)
    assert reached.all(), "no pixel of the image is spared"
    assert len(torch.unique(content_key(x))) > 295


def test_scale_and_rotation_are_drawn_in_their_ranges() -> None:
    x = random_images((1, 28, 28), 400)
    areas = RandomPatch(size=8, smallest=0.5, largest=1.5).places(x).inside.sum((1, 2))
    assert 16 * 0.7 <= areas.min() < 25 and 120 < areas.max() <= 144 * 1.2
    turned = RandomPatch(size=8, degrees=45.0).places(x)
    upright = RandomPatch(size=8).places(x)
    assert (upright.row == upright.row.round()).all()
    assert (turned.row != turned.row.round()).any()


def test_a_patch_that_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"9.6 x 9.6 pixels does not fit into images of 8 x 8"):
        RandomPatch(size=8, largest=1.2).start(digits(2)[0])


def test_the_gradient_of_a_pixel_reaches_the_patch() -> None:
    ball, x = RandomPatch(size=4, smallest=0.9, degrees=20.0), colour(3)
    patch = (0.5 * torch.rand(3, 3, 4, 4)).requires_grad_()
    torch.autograd.backward(ball.apply(patch, x).sum())
    assert patch.grad is not None and (patch.grad > 0).float().mean() > 0.9
