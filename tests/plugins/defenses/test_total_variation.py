"""Total variation: the solver against another one, optimality certificates, and properties."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from plugins.defenses.total_variation import (
    ITERATIONS,
    KEPT,
    WEIGHT,
    cosine_basis,
    denoise,
    difference_matrix,
    minimizer,
    objective,
    total_variation,
)
from tests.fixtures.known_models import digits

pytestmark = pytest.mark.row("F05")


def problem(n: int = 16, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Digits in float64, and a mask of the kept pixels."""
    x = digits(n)[0].double()
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(x.shape, generator=generator) < share).double()
    return x, kept


def test_the_variation_of_a_checkerboard_is_its_number_of_edges() -> None:
    checkerboard = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4)[None, None]
    assert total_variation(checkerboard) == 2 * 8 * 7


@pytest.mark.parametrize("size", [2, 8, 28])
def test_the_cosine_basis_diagonalises_the_differences(size: int) -> None:
    basis, value = cosine_basis(size)
    assert torch.allclose(basis.T @ basis, torch.eye(size), atol=1e-5)
    both = difference_matrix(size).T @ difference_matrix(size)
    assert torch.allclose(basis @ value.diag() @ basis.T, both, atol=1e-5)


def quadratic_programme(x: npt.NDArray[np.float64], kept: npt.NDArray[np.float64]) -> float:
    """The smallest objective by scipy, with a bound t on |D z|, for one image [side, side]."""
    side, pixels = len(x), x.size
    d = difference_matrix(side).double().numpy()
    edges = np.vstack([np.kron(np.eye(side), d), np.kron(d, np.eye(side))])
    eye = np.eye(len(edges))
    mask, goal = kept.ravel(), x.ravel()

    def value(v: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        off = mask * (v[:pixels] - goal)
        slope = np.concatenate([off, np.full(len(edges), WEIGHT)])
        return float(off @ off / 2 + WEIGHT * v[pixels:].sum()), slope

    above = LinearConstraint(np.block([[-edges, eye], [edges, eye]]), 0, np.inf)
    start = np.concatenate([goal, np.abs(edges @ goal)])
    found = minimize(
        value,
        start,
        jac=True,
        constraints=[above],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_objective_is_that_of_a_quadratic_programme(share: float) -> None:
    x, kept = problem(3, share)
    x, kept = x[:, :, 1:6, 1:6], kept[:, :, 1:6, 1:6]
    ours = objective(minimizer(x, kept, WEIGHT, 1500), x, kept, WEIGHT)
    for i in range(len(x)):
        best = quadratic_programme(x[i, 0].numpy(), kept[i, 0].numpy())
        assert float(ours[i]) == pytest.approx(best, rel=1e-5)


def test_forty_iterations_are_within_one_percent_of_the_optimum() -> None:
    x, kept = problem(64)
    best = objective(minimizer(x, kept, WEIGHT, 1500), x, kept, WEIGHT)
    few = objective(
        minimizer(x.float(), kept.float(), WEIGHT, ITERATIONS).double(), x, kept, WEIGHT
    )
    assert (few >= best - 1e-6).all()
    assert ((few - best) / best).max() < 0.01


def test_no_image_nearby_has_a_smaller_objective() -> None:
    x, kept = problem()
    z = minimizer(x, kept, WEIGHT, 1500)
    least = objective(z, x, kept, WEIGHT)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 1e-1):
        step = size * torch.randn(z.shape, generator=generator, dtype=z.dtype)
        for other in (z + step, z - step, z + size, (1 - size) * z + size * x):
            assert (objective(other, x, kept, WEIGHT) >= least - 1e-9).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_constant_image_is_unchanged(share: float) -> None:
    _, kept = problem(4, share)
    grey = torch.full_like(kept, 0.3)
    assert torch.allclose(minimizer(grey, kept, WEIGHT, ITERATIONS), grey, atol=1e-6)


def test_with_every_pixel_kept_the_variation_falls() -> None:
    x, _ = problem()
    z = minimizer(x, torch.ones_like(x), WEIGHT, 400)
    assert (total_variation(z) < total_variation(x)).all()


def test_the_weight_goes_from_the_kept_pixels_to_a_constant_image() -> None:
    x, kept = problem()
    free = minimizer(x, kept, 0.0, 500)
    assert (kept * (free - x)).abs().max() < 1e-6
    even = minimizer(x, kept, 10.0, 3000).flatten(2)
    mean = (kept * x).flatten(2).sum(2) / kept.flatten(2).sum(2)
    assert (even - mean[..., None]).abs().max() < 1e-2


def test_dropped_pixels_have_no_influence() -> None:
    x, kept = problem()
    other = torch.where(kept > 0, x, 1 - x)
    one, two = (minimizer(z, kept, WEIGHT, ITERATIONS) for z in (x, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, minimizer(1 - other, kept, WEIGHT, ITERATIONS))


def test_the_mask_is_new_on_each_call_and_has_its_share() -> None:
    x = digits(64)[0]
    torch.manual_seed(0)
    first, second = (denoise(x, 0.0, KEPT, 200) for _ in range(2))
    assert not torch.equal(first, second)
    kept = ((first - x).abs() < 1e-4)[(x > 0.3) & (x < 0.7)].double().mean()
    assert abs(float(kept) - KEPT) < 0.1


def test_the_gradient_of_the_solver_agrees_with_finite_differences() -> None:
    x, kept = problem(4)
    weight, v = torch.randn_like(x), torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((minimizer(leaf, kept, WEIGHT, ITERATIONS) * weight).sum(), leaf)
    step = 1e-6
    ahead, behind = (minimizer(x + h * v, kept, WEIGHT, ITERATIONS) for h in (step, -step))
    seen = ((ahead - behind) * weight).sum() / (2 * step)
    assert float((slope * v).sum()) == pytest.approx(float(seen), rel=0.01)
