"""The JPEG codec in front of a network, and SHIELD's blocks of random quality."""

from __future__ import annotations

from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench.plugin import TrainingBatch, straight_through
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import PreprocessedModel
from plugins.defenses.jpeg import BLOCK, jpeg_compress
from plugins.defenses.shield import (
    QUALITIES,
    MajorityVote,
    MeanProbability,
    random_block_quality,
    vaccination_loss,
    voting_networks,
)
from tests.fixtures.known_models import digits, linear

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def images(*shape: int) -> Tensor:
    """Noise of every frequency on a smooth ramp."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(0, 0.5, shape[-1]).expand(shape)
    return slope + 0.5 * torch.rand(shape, generator=generator)


@pytest.mark.row("F01")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quality", [20, 75, 100])
def test_jpeg_keeps_the_shape_and_returns_256_levels(shape: tuple[int, ...], quality: int) -> None:
    x = images(4, *shape)
    y = jpeg_compress(x, quality)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.equal((y * 255).round() / 255, y)
    assert y.min() >= 0 and y.max() <= 1


@pytest.mark.row("F01")
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_in_a_stacked_file_is_the_image_in_its_own_file(shape: tuple[int, ...]) -> None:
    x = images(5, *shape)
    together = jpeg_compress(x, 40)
    for image, found in zip(x, together, strict=True):
        shades = (image * 255).round().byte().movedim(0, 2).squeeze(2).numpy()
        file = BytesIO()
        Image.fromarray(shades).save(file, "JPEG", quality=40, subsampling=0)
        expected = torch.from_numpy(np.array(Image.open(file))).float() / 255
        assert torch.equal(found.movedim(0, 2).squeeze(2), expected)


@pytest.mark.row("F01")
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28)])
def test_the_higher_the_quality_the_smaller_the_change(shape: tuple[int, ...]) -> None:
    x = images(16, *shape)
    changes = [float((jpeg_compress(x, quality) - x).abs().mean()) for quality in (10, 40, 75, 100)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0.05
    assert changes[3] < 0.5 / 255 + 2e-3


@pytest.mark.row("F01")
def test_jpeg_is_nearly_idempotent_where_nothing_is_clipped() -> None:
    once = jpeg_compress(0.25 + 0.5 * images(64, 1, 16, 16), 75)
    twice = jpeg_compress(once, 75)
    assert float((twice != once).double().mean()) < 0.02
    assert not torch.equal(jpeg_compress(once, 60), once)


@pytest.mark.row("F01")
def test_a_constant_image_is_unchanged() -> None:
    grey = torch.full((1, 1, 16, 16), 128 / 255)
    assert torch.equal(jpeg_compress(grey, 20), grey)


@pytest.mark.row("F01")
def test_jpeg_has_no_gradient_and_its_bpda_approximation_that_of_the_identity() -> None:
    x = images(4, 1, 8, 8).requires_grad_()
    assert not jpeg_compress(x, 75).requires_grad
    near = straight_through(lambda z: jpeg_compress(z, 75))(x)
    assert torch.equal(near, jpeg_compress(x, 75))
    (slope,) = torch.autograd.grad(near.sum(), x)
    assert torch.equal(slope, torch.ones_like(x))


@pytest.mark.row("F02")
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_one_quality_are_jpeg(shape: tuple[int, ...]) -> None:
    x = images(4, *shape)
    assert torch.equal(random_block_quality(x, (40,)), jpeg_compress(x, 40))


def blocks(x: Tensor) -> Tensor:
    """[n, C, rows, columns, BLOCK, BLOCK]."""
    return x.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)


@pytest.mark.row("F02")
def test_every_block_has_one_of_the_qualities_equally_often() -> None:
    x = images(64, 1, 24, 16)
    torch.manual_seed(0)
    found = blocks(random_block_quality(x))
    each = torch.stack([(found == blocks(jpeg_compress(x, q))).all(-1).all(-1) for q in QUALITIES])
    assert (each.sum(0) == 1).all()
    share = each.double().mean(dim=(1, 2, 3, 4))
    assert (share - 0.25).abs().max() < 4 * (0.25 * 0.75 / 384) ** 0.5


@pytest.mark.row("F02")
def test_qualities_are_drawn_on_each_call_from_torch_s_generator() -> None:
    x = images(8, 1, 24, 16)
    torch.manual_seed(0)
    first, second = random_block_quality(x), random_block_quality(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(random_block_quality(x), first)


class Fixed(nn.Module):
    """Predicts the same class for every image."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(4)[self.label].expand(len(x), 4)


@pytest.mark.row("F02")
def test_the_majority_decides() -> None:
    vote = MajorityVote(nn.ModuleList(Fixed(label) for label in (1, 2, 3, 2)))
    answer = vote(torch.zeros(3, 1, 8, 8))
    assert torch.allclose(answer.exp()[0], torch.tensor([0.5, 1.5, 2.5, 1.5]))


@pytest.mark.row("F02")
def test_equal_voters_predict_as_one_and_their_mean_has_a_gradient() -> None:
    x, _ = digits(32)
    one = linear(torch.eye(64)[:10])
    voters = nn.ModuleList([one, one])
    assert torch.equal(MajorityVote(voters)(x).argmax(1), one(x).argmax(1))
    expected = one(x).log_softmax(1) + torch.tensor(2.0).log()
    assert torch.allclose(MeanProbability(voters)(x), expected, atol=1e-5)


@pytest.mark.row("F02")
def test_each_voter_trains_at_its_own_quality() -> None:
    x, y = digits(32)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = voting_networks((1, 8, 8), 10)
    alone = [
        clean_loss(
            TrainingBatch(
                PreprocessedModel(voter, partial(jpeg_compress, quality=quality)), x, y, x
            )
        )
        for voter, quality in zip(model.voters, QUALITIES, strict=True)
    ]
    assert torch.allclose(
        vaccination_loss(TrainingBatch(model, x, y, x)), torch.stack(alone).sum(0)
    )
    assert len({float(loss.detach().sum()) for loss in alone}) == len(QUALITIES)
