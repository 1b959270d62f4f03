"""MI-FGSM: BIM at decay 0, and a known sum of gradients with momentum."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from plugins.attacks.bim import BIM
from plugins.attacks.mi_fgsm import MomentumFGSM
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    last_iterate,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

BALL = Linf(Fraction(1, 5))


@pytest.mark.row("A20")
@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_without_momentum_it_is_bim_to_the_bit(steps: int) -> None:
    x, y = digits(64)
    forgetful, bim = MomentumFGSM(steps=steps, mu=0), BIM(steps=steps, rate=1 / steps)
    trace = states(forgetful, rows_of(forgetful, small_cnn(), x, y, BALL))
    for state, adv in zip(trace, states(bim, rows_of(bim, small_cnn(), x, y, BALL)), strict=True):
        assert torch.equal(state.adv, adv)


@pytest.mark.parametrize("ball", [L2(Fraction(1)), L1(Fraction(2))], ids=["L2", "L1"])
def test_without_momentum_it_is_bim_in_the_other_norms_up_to_rounding(
    ball: PerturbationSet,
) -> None:
    x, y = digits(64)
    forgetful, bim = MomentumFGSM(mu=0), BIM(rate=0.1)
    one, other = (last_iterate(a, rows_of(a, small_cnn(), x, y, ball)) for a in (forgetful, bim))
    assert (one - other).abs().max() < 1e-4


@pytest.mark.row("A20")
@pytest.mark.parametrize(("mu", "total"), [(1.0, 4.0), (0.5, 1.875)])
def test_gradients_in_one_direction_add_up_to_a_geometric_sum(mu: float, total: float) -> None:
    """On a linear model of two classes g / |g|_1 is -+w / |w|_1 everywhere."""
    weight, x = gaussian(12), interior(32, 12)
    y = ModelAccess(binary(weight)).logits(x).argmax(1)
    attack = MomentumFGSM(mu=mu)
    *_, state = states(attack, rows_of(attack, binary(weight), x, y, Linf(Fraction(1, 10))), 4)
    sign = 1 - 2 * y[:, None]
    expected = total * sign * weight / weight.abs().sum()
    assert torch.allclose(state.momentum.flatten(1), expected, rtol=1e-5, atol=1e-7)


def test_on_a_linear_model_ten_steps_end_in_the_farthest_corner_and_nine_do_not() -> None:
    x, y = digits(64)
    weight, attack = gaussian(64), MomentumFGSM()
    rows = rows_of(attack, binary(weight), x, y % 2, BALL)
    direction = (1 - 2 * (y % 2))[:, None, None, None] * weight.view(1, 1, 8, 8)
    *_, ninth, tenth = (state.adv for state in states(attack, rows))
    corner = rows.ball.farthest(direction, x)
    assert torch.allclose(tenth, corner, atol=1e-6)
    assert (ninth - corner).abs().amax((1, 2, 3)).min() > 0.015


class Plateau(nn.Module):
    """A loss whose gradient vanishes 1 / 100 beyond the clean image."""

    def forward(self, images: Tensor) -> Tensor:
        rise = images.flatten(1).mean(1).clamp_max(0.51)
        return torch.stack([0 * rise + 0.6, rise], 1)


def test_momentum_crosses_a_plateau_where_bim_stops() -> None:
    x, y = torch.full((32, 1, 1, 4), 0.5), torch.zeros(32, dtype=torch.int64)
    ends = [
        last_iterate(a, rows_of(a, Plateau(), x, y, BALL)) for a in (MomentumFGSM(), BIM(rate=0.1))
    ]
    assert torch.allclose(ends[0], torch.tensor(0.7))
    assert torch.allclose(ends[1], torch.tensor(0.52))


def test_it_breaks_an_undefended_network() -> None:
    x, y = digits(64)
    assert run_and_judge(MomentumFGSM(), small_cnn(), x, y, BALL).broken.float().mean() > 0.9
