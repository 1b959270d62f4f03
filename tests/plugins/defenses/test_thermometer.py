"""Thermometer encoding: monotone bits that decode to the floor, and its BPDA approximation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plugins.defenses.thermometer import (
    LEVELS,
    RAMP,
    soft_thermometer,
    thermometer,
    thermometer_cnn,
)

pytestmark = pytest.mark.row("D29")
GRID = torch.arange(256).float().view(1, 1, 16, 16) / 255


def test_the_code_has_one_bit_a_level_and_is_monotone() -> None:
    code = thermometer(GRID)
    assert code.shape == (1, LEVELS, 16, 16)
    assert set(code.flatten().tolist()) == {0.0, 1.0}
    assert (code.diff(dim=1) <= 0).all()


def test_the_code_decodes_to_the_floor() -> None:
    assert torch.equal(thermometer(GRID).sum(1), (GRID[:, 0] * LEVELS).floor())
    exact = (torch.arange(17) / 16).view(1, 1, 1, 17)
    assert torch.equal(thermometer(exact).sum(1).flatten(), torch.arange(17.0))


def test_each_channel_has_its_own_bits() -> None:
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = [thermometer(x[:, channel : channel + 1]) for channel in range(3)]
    assert torch.equal(thermometer(x), torch.cat(alone, 1))


def slope(x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(soft_thermometer(leaf).sum(), leaf)
    return found


def test_the_code_has_no_gradient_and_its_bpda_approximation_has_one() -> None:
    assert not thermometer(GRID.clone().requires_grad_()).requires_grad
    assert torch.allclose(soft_thermometer(GRID), thermometer(GRID), atol=1e-6)
    assert (slope(GRID) > 0).all()


def test_the_gradient_counts_the_ramps_at_the_pixel() -> None:
    x = torch.tensor([0.49, 0.51]).view(2, 1, 1, 1)
    near = RAMP * LEVELS
    assert torch.allclose(slope(x).flatten(), torch.full((2,), near / RAMP))


def test_intensity_within_a_level_changes_no_logit() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = thermometer_cnn((1, 8, 8), 10).eval()
    x = (torch.randint(0, 16, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0))) / 16
    assert torch.equal(model(x + 0.9 / 16), model(x))
    assert not torch.equal(model(x + 1 / 16), model(x))
