"""The contrastive latent space and its nearest supports: properties, and a negative result."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import TrainingBatch
from plugins.defenses.contrastive_latent_space import (
    LATENT,
    SUPPORTS,
    NearestSupport,
    bench_defenses,
    contrastive_loss,
    store_supports,
    support_distances,
    training_loss,
)
from tests.fixtures.protocol_dg import DigitsTestbed, fgsm, mlp, recipe, testbed

__all__ = ["testbed"]
ROW = pytest.mark.row("D27")


def points(*places: tuple[float, float]) -> Tensor:
    """[n, 2] that requires a gradient."""
    return torch.tensor(places, dtype=torch.float64, requires_grad=True)


def value_of(loss: Tensor) -> float:
    """The number."""
    return float(loss.detach())


@ROW
def test_the_loss_is_zero_for_one_point_and_for_classes_further_than_the_margin() -> None:
    same = torch.tensor([3, 3])
    other = torch.tensor([3, 4])
    assert value_of(contrastive_loss(points((1, 1), (1, 1)), same, 2.0)) < 1e-11
    assert value_of(contrastive_loss(points((0, 0), (0, 2.1)), other, 2.0)) == 0
    assert value_of(contrastive_loss(points((0, 0), (0, 0.5)), other, 2.0)) == pytest.approx(1.5**2)
    assert value_of(contrastive_loss(points((0, 0), (3, 4)), same, 2.0)) == pytest.approx(25)


@ROW
def test_equal_classes_attract_and_different_ones_repel_within_the_margin() -> None:
    for label, sign in ((3, 1.0), (4, -1.0)):
        z = points((0, 0), (1, 0))
        (slope,) = torch.autograd.grad(contrastive_loss(z, torch.tensor([3, label]), 2.0), z)
        downhill = -slope
        assert sign * float(downhill[0, 0]) > 0, "the first moves to the right exactly if alike"
        assert sign * float(downhill[1, 0]) < 0


@ROW
def test_every_pair_counts_once() -> None:
    z, y = points((0, 0), (0, 1), (0, 3)), torch.tensor([0, 0, 1])
    expected = (
        1.0 + 0.0 + 0.0
    ) / 3  # distances 1 (same class), 3 and 2 (different classes, margin 2)
    assert value_of(contrastive_loss(z, y, 2.0)) == pytest.approx(expected)


@ROW
def test_the_order_of_the_supports_does_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    supports = torch.randn(10, SUPPORTS, LATENT, generator=draw)
    z = torch.randn(200, LATENT, generator=draw)
    found = support_distances(z, supports)
    brute = torch.cdist(z, supports.flatten(0, 1)).view(200, 10, SUPPORTS).amin(2)
    assert torch.allclose(found, brute, atol=1e-5)
    shuffled = supports[:, torch.randperm(SUPPORTS, generator=draw)]
    assert torch.equal(found, support_distances(z, shuffled))
    tied = support_distances(torch.zeros(1, LATENT), torch.zeros(10, SUPPORTS, LATENT))
    assert int((-tied).argmax(1)) == 0, "a tie goes to the first class, in every order of supports"


@pytest.mark.row("RP03")
def test_the_margin_and_the_supports_are_those_of_the_report() -> None:
    """Margin 2, five supports for each of ten classes, a latent space that can be plotted."""
    (made,) = bench_defenses()
    assert made.recipe is not None
    assert made.recipe.options == {"margin": 2.0, "supports": 5, "latent": 2}
    assert NearestSupport((1, 8, 8), 10).support.shape == (10, 5, 2)


def test_supports_are_the_first_images_of_each_class() -> None:
    torch.manual_seed(0)
    model = NearestSupport((1, 4, 4), 3)
    x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    store_supports(TrainingBatch(model, x, y, x))
    with torch.no_grad():
        expected = model.encoder(x[[1, 4, 7, 10, 13]])
    torch.testing.assert_close(model.support[1], expected)  # batches differ in the last bit
    assert (model(x[:3]).argmax(1) == y[:3]).all(), "a support is its own nearest"


@pytest.mark.row("D27", "RP03")
@pytest.mark.slow
def test_the_latent_space_is_as_vulnerable_as_its_head(testbed: DigitsTestbed) -> None:
    """On this testbed 1-NN has .918 clean and .002 under FGSM, and the head .002.

    At eps .01, the radius of the report, FGSM leaves 1-NN .906 and a plain network .960; at .05
    .542 and .804: no gain over no defense.
    """

    def net(shape: tuple[int, int, int], classes: int) -> NearestSupport:
        made = NearestSupport(shape, classes)
        made.encoder = mlp(shape, LATENT)
        return made

    made_by = recipe(partial(training_loss, margin=2.0), model=net, fit=store_supports)
    by_nearest = testbed.train("contrastive", made_by)
    assert isinstance(by_nearest, NearestSupport)

    class Head(nn.Module):
        """The linear layer beside the supports."""

        def __init__(self, whole: NearestSupport) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, images: Tensor) -> Tensor:
            """To logits."""
            logits: Tensor = self.whole.head(self.whole.encoder(images))
            return logits

    head = Head(by_nearest)
    assert testbed.clean(by_nearest) > 0.8
    assert testbed.clean(head) > 0.85
    assert testbed.robust(by_nearest, fgsm()) < 0.25
    assert testbed.robust(head, fgsm()) < 0.25
    plain = testbed.train("plain", recipe())
    for eps in (Fraction(1, 100), Fraction(5, 100)):
        assert testbed.robust(by_nearest, fgsm(eps)) <= testbed.robust(plain, fgsm(eps)) + 0.02
