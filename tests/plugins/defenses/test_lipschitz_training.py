"""The Toeplitz bound: never below the norm, tight for large images, and reduced by training."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import TrainingBatch
from plugins.certifiers._spectral_norm import convolution_norm
from plugins.defenses._losses import adversarial_loss
from plugins.defenses.lipschitz_training import (
    GRID,
    layer_bounds,
    lipschitz_bound,
    regularized_loss,
)
from tests.fixtures.protocol_dg import DigitsTestbed, pgd, recipe, testbed

__all__ = ["testbed"]
ROW = pytest.mark.row("D25")


def toeplitz(kernel: Tensor, n: int) -> Tensor:
    """The matrix [n, n] of a one-dimensional convolution with zero padding."""
    middle = len(kernel) // 2
    matrix = torch.zeros(n, n, dtype=kernel.dtype)
    for offset, value in enumerate(kernel.tolist(), -middle):
        matrix += value * torch.diag(torch.ones(n - abs(offset), dtype=kernel.dtype), offset)
    return matrix


def kernel(*shape: int, seed: int = 0) -> Tensor:
    """Normal weights."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@ROW
@pytest.mark.parametrize("seed", range(20))
def test_the_bound_covers_toeplitz_matrices_and_is_tight_for_long_ones(
    seed: int,
) -> None:
    k = kernel(5, seed=seed)
    bound = float(lipschitz_bound(k[None, None], grid=256))
    norms = [float(torch.linalg.matrix_norm(toeplitz(k, n), 2)) for n in (8, 32, 128)]
    assert norms == sorted(norms)
    assert norms[-1] <= bound
    assert bound < 1.01 * norms[-1], "as the signal grows, the norm tends to the supremum"


@ROW
@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (4, 3, 3, 3), (2, 6, 5, 5), (8, 1, 3, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_covers_convolutions_of_many_channels(shape: tuple[int, ...], seed: int) -> None:
    k = kernel(*shape, seed=seed)
    bound = float(lipschitz_bound(k))
    image = torch.Size((shape[1], 12, 12))
    assert float(convolution_norm(k, (1, 1), 1, image)) <= bound
    x = torch.randn(30, *image, generator=torch.Generator().manual_seed(seed)).double()
    moved = nn.functional.conv2d(x, k, padding="same")
    stretch = moved.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert float(stretch.max()) <= bound


@ROW
def test_a_circular_convolution_attains_the_polynomial_on_the_grid() -> None:
    k = kernel(3)
    n = GRID
    circulant = torch.zeros(n, n, dtype=torch.float64)
    for offset, value in enumerate(k.tolist(), -1):
        circulant += value * torch.roll(torch.eye(n, dtype=torch.float64), offset, 0)
    norm = float(torch.linalg.matrix_norm(circulant, 2))
    rise = math.cos(math.pi * 2 / GRID) ** 0.5
    assert float(lipschitz_bound(k[None, None])) * rise == pytest.approx(norm, rel=1e-12)


@ROW
def test_between_grid_points_no_polynomial_exceeds_the_correction() -> None:
    for seed in range(50):
        k = kernel(1, 1, 3, 3, seed=seed)
        fine = float(lipschitz_bound(k, grid=512))
        assert fine <= float(lipschitz_bound(k)) * (1 + 1e-3)


@ROW
def test_a_matrix_is_a_kernel_of_one_point() -> None:
    w = kernel(4, 7)
    assert float(lipschitz_bound(w)) == pytest.approx(float(w.square().sum().sqrt()))
    assert float(lipschitz_bound(w)) >= float(torch.linalg.matrix_norm(w, 2))


@ROW
def test_the_regulariser_is_the_sum_of_the_logs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    one = TrainingBatch(net, x, y, x)
    assert len(layer_bounds(net)) == 2
    added = regularized_loss(one, 0.25) - adversarial_loss(one)
    expected = 0.25 * sum(math.log(float(bound.detach())) for bound in layer_bounds(net))
    assert torch.allclose(added, torch.full((4,), expected), atol=1e-5)


@ROW
@pytest.mark.slow
def test_training_reduces_the_product_of_bounds_and_keeps_robustness(
    testbed: DigitsTestbed,
) -> None:
    plain = testbed.train("pgd-7", recipe(adversarial_loss, inner=pgd(7)))
    smooth = testbed.train("lipreg", recipe(partial(regularized_loss, strength=0.1), inner=pgd(7)))

    def product(model: nn.Module) -> float:
        return float(torch.stack(layer_bounds(model)).log().sum())

    assert product(smooth) < product(plain) - 0.5
    assert testbed.robust(smooth, pgd(10)) > testbed.robust(plain, pgd(10)) - 0.04
