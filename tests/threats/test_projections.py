"""Projections against bisection, and inside the box [0, 1]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.threats.projections import distance_to_box, smallest_divisor, smallest_step


def reached(slope: Tensor, cap: Tensor, t: Tensor) -> Tensor:
    """[n]: sum min(t slope, cap)."""
    return torch.minimum(slope * t[:, None], cap).sum(1)


def bisection(slope: Tensor, cap: Tensor, bound: Tensor) -> Tensor:
    """[n]: the least t at which `reached` is `bound`."""
    low, high = torch.zeros_like(bound), torch.full_like(bound, 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        enough = reached(slope, cap, middle) >= bound
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def numbers(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_smallest_step_is_that_of_bisection() -> None:
    slope, cap = numbers(20, 30), numbers(20, 30)
    bound = cap.sum(1) * torch.linspace(0.05, 0.95, 20, dtype=torch.float64)
    found = smallest_step(slope, cap, bound)
    assert torch.allclose(found, bisection(slope, cap, bound), rtol=1e-10)
    assert torch.allclose(reached(slope, cap, found), bound, rtol=1e-12)


def test_beyond_the_sum_of_the_caps_every_cap_is_reached() -> None:
    slope, cap = numbers(3, 8) + 0.1, numbers(3, 8)
    found = smallest_step(slope, cap, 2 * cap.sum(1))
    assert torch.allclose(reached(slope, cap, found), cap.sum(1), rtol=1e-12)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    slope, cap = numbers(6, 10), numbers(6, 10)
    bound = 0.5 * cap.sum(1)
    together = smallest_step(slope, cap, bound)
    alone = [smallest_step(slope[i : i + 1], cap[i : i + 1], bound[i : i + 1]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_the_distance_is_that_along_the_sign_of_the_direction() -> None:
    x = torch.tensor([[[[0.25, 0.25]]]])
    assert distance_to_box(torch.tensor([[[[1.0, -1.0]]]]), x).tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_division_by_the_smallest_divisor_is_finite(kind: torch.dtype) -> None:
    small = smallest_divisor(torch.zeros(1, dtype=kind))
    assert torch.isfinite(torch.ones(1, dtype=kind) / small).all()
