"""Thermometer encoding: monotone bits that decode to the floor, and its BPDA approximation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.plugin import TrainingBatch, cross_entropy
from plugins.defenses._logit_space_ascent import LogitSpaceAscent, expected_code
from plugins.defenses.thermometer import (
    INNER,
    LEVELS,
    RAMP,
    ascent_loss,
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


def photograph(n: int = 4) -> Tensor:
    """[n, 1, 8, 8] images of 8 bits."""
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 1, 8, 8), generator=draws).float() / 255


def linear_on_bits(seed: int = 2) -> Callable[[Tensor], Tensor]:
    """Logits [n, 2] that are linear in the code [n, 16, 8, 8]."""
    weight = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(seed))

    def logits(code: Tensor) -> Tensor:
        value = (code * weight).flatten(1).sum(1) / 100
        return torch.stack([-value, value], 1)

    return logits


def test_the_expected_code_of_one_level_is_its_thermometer_code() -> None:
    x = photograph()
    level = (x * LEVELS).floor().long()
    shares = torch.nn.functional.one_hot(level, LEVELS + 1).movedim(-1, 2).float()
    assert torch.equal(expected_code(shares), thermometer(x))
    half = (shares + shares.roll(1, 2)) / 2
    mean = (level + (level + 1) % (LEVELS + 1)) / 2
    assert torch.allclose(expected_code(half).sum(1), mean[:, 0])


@pytest.mark.parametrize("radius", [0.0, 0.031, 0.2, 1.0])
def test_the_reached_levels_are_those_of_the_intensities_of_the_ball(radius: float) -> None:
    x = photograph()
    reached = LogitSpaceAscent(radius).reached_levels(x)
    share = torch.linspace(-1, 1, 401).view(-1, 1, 1, 1, 1)
    level = ((x + share * radius).clamp(0, 1) * LEVELS).floor().long()
    found = torch.nn.functional.one_hot(level, LEVELS + 1).amax(0).movedim(-1, 2).bool()
    assert torch.equal(found & reached, found), "a level of the ball is missing"
    assert (reached ^ found).float().mean() < 0.002, "levels that only the edge of the ball has"


def test_the_result_is_in_the_ball_and_has_the_chosen_code() -> None:
    x, y = photograph(), torch.tensor([0, 1, 0, 1])
    torch.manual_seed(0)
    adv = INNER.images(linear_on_bits(), x, y)
    assert (adv - x).abs().max() <= INNER.radius + 1e-6 and adv.min() >= 0 and adv.max() <= 1
    assert not adv.requires_grad
    for level in (torch.zeros_like(x).long(), torch.full_like(x, LEVELS).long()):
        assert torch.equal(thermometer(INNER.nearest_image(x, level)).sum(1), level[:, 0].float())
    assert torch.equal(INNER.nearest_image(x, (x * LEVELS).floor().long()), x)


def test_on_a_network_that_is_linear_in_the_code_it_reaches_the_best_levels() -> None:
    """The optimum is known pixel by pixel: the level of the ball with the largest sum of weights.

    The sign of one step tells better from worse levels than the mean; some remain tied.
    """
    x, y = photograph(64), torch.arange(64) % 2
    model = linear_on_bits()
    inner = LogitSpaceAscent(0.2, steps=40)
    torch.manual_seed(0)
    found = cross_entropy(model(thermometer(inner.images(model, x, y))), y)
    best = cross_entropy(model(best_code(model, inner, x, y)), y)
    clean = cross_entropy(model(thermometer(x)), y)
    assert (found <= best + 1e-4).all(), "above the optimum"
    assert ((found - clean) / (best - clean)).min() > 0.9


def test_the_code_sharpens_by_the_factor_of_each_step() -> None:
    """With fixed logits the softmax of a pixel of two levels has the odds exp(u 1.2^t)."""
    x, seen = torch.full((1, 1, 1, 1), 0.5), list[Tensor]()

    def classifier(code: Tensor) -> Tensor:
        seen.append(code.detach().flatten())
        return torch.stack([-code.flatten(1).sum(1), code.flatten(1).sum(1)], 1)

    torch.manual_seed(0)
    LogitSpaceAscent(0.05, steps=6, rate=0.0).images(classifier, x, torch.zeros(1).long())
    assert all(code[:7].allclose(torch.ones(7)) and not code[8:].any() for code in seen)
    first, *odds = [float(torch.logit(code[7].double())) for code in seen]  # of level 8, not 7
    assert first != 0 and len(odds) == 5
    for t, value in enumerate(odds, 1):
        assert value == pytest.approx(first * 1.2**t, rel=1e-4)


def best_code(
    model: Callable[[Tensor], Tensor], inner: LogitSpaceAscent, x: Tensor, y: Tensor
) -> Tensor:
    """The code of the largest loss, by trying every level of every pixel alone."""
    losses = []
    for level in range(LEVELS + 1):
        ones = torch.zeros(LEVELS, 1, 1)
        ones[:level] = 1
        code = ones.expand(LEVELS, 8, 8).clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(code[None])[0, 1], code)
        losses.append((slope * code).sum(0).detach())
    gain = torch.stack(losses)[None] * (1 - 2 * y.view(-1, 1, 1, 1))
    best = gain.masked_fill(~inner.reached_levels(x)[:, 0], -torch.inf).argmax(1, keepdim=True)
    return thermometer(best.float() / LEVELS)


def test_training_takes_the_loss_of_the_attacked_images_and_its_gradient() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = thermometer_cnn((1, 8, 8), 10)
        x, y = photograph(16), torch.arange(16) % 10
        batch = TrainingBatch(model, x, y, adv=x)
        torch.manual_seed(3)
        loss = ascent_loss(batch)
        clean = cross_entropy(model(x), y)
    assert loss.shape == (16,) and (loss > clean).float().mean() > 0.9
    slopes = torch.autograd.grad(loss.mean(), list(model.parameters()))
    assert all(slope.abs().sum() > 0 for slope in slopes)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        none = ascent_loss(batch, LogitSpaceAscent(0.0))
    assert torch.equal(none, clean), "a ball of radius 0 leaves the clean image"
