"""Nuisance transforms: the identity, ranges, rows, gradients, and their part in the rules."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import pytest
import torch

from bench.threats.norms import Linf
from bench.threats.nuisance import Nuisance, print_and_scan
from bench.threats.random_numbers import KeyedRandomNumbers, example_key
from bench.threats.threat_model import ThreatModel
from bench.threats.warps import rotate_and_shift
from tests.threats.test_parametric import SIZES, draws, random_images

WIDE = Nuisance(
    shift=2.0, smallest=0.8, largest=1.25, degrees=20.0, perspective=0.2, blur=0.8, contrast=0.3,
    brightness=0.2, noise=0.1, quality=40,
)  # fmt: skip
SINGLE = {
    "shift": 1.5, "smallest": 0.7, "largest": 1.5, "degrees": 25.0, "perspective": 0.3,
    "blur": 1.0, "contrast": 0.4, "brightness": 0.3, "noise": 0.2, "quality": 20,
}  # fmt: skip
"""A value of each field that changes images."""


@pytest.mark.row("G14")
@pytest.mark.parametrize("shape", SIZES)
def test_the_default_and_severity_zero_are_the_identity_to_the_bit(shape: tuple[int, ...]) -> None:
    x = random_images(shape)
    x[0], x[1] = 0, 1
    for nuisance in (Nuisance(), WIDE.times(0), print_and_scan(0)):
        assert torch.equal(nuisance.seen(x, draws(4)), x)


@pytest.mark.parametrize("name", SINGLE)
def test_every_field_changes_images_within_the_box(name: str) -> None:
    x = random_images((3, 16, 16), 8)
    changed = Nuisance(**{name: SINGLE[name]}).seen(x, draws(8))  # type: ignore[arg-type]
    assert changed.shape == x.shape and changed.dtype == x.dtype
    assert (changed != x).flatten(1).any(1).all()
    assert changed.amin() >= 0 and changed.amax() <= 1


@pytest.mark.row("G14")
def test_a_row_depends_on_its_own_image_and_draws_alone() -> None:
    x = random_images((1, 28, 28), 12)
    key = example_key(3, "row", torch.arange(12), torch.zeros(12, dtype=torch.int64))
    step = torch.zeros(12, dtype=torch.int64)
    whole = WIDE.seen(x, KeyedRandomNumbers(key, step))
    part = WIDE.seen(x[4:7], KeyedRandomNumbers(key[4:7], step[4:7]))
    assert torch.equal(part, whole[4:7])
    assert torch.equal(WIDE.seen(x, KeyedRandomNumbers(key, step)), whole)
    other = WIDE.seen(x, KeyedRandomNumbers(key, step + 1))
    assert (other != whole).flatten(1).any(1).all()


def test_a_single_range_is_drawn_uniformly_to_both_ends() -> None:
    """Of a grey image the brightness can be read off, and of a ramp the shift."""
    grey = torch.full((2000, 1, 4, 4), 0.5)
    light = Nuisance(brightness=0.25).seen(grey, draws(2000))[:, 0, 0, 0] - 0.5
    assert -0.25 <= light.amin() < -0.245 and 0.245 < light.amax() <= 0.25
    assert abs(float(light.mean())) < 0.01 and abs(float(light.std()) - 0.25 / 3**0.5) < 0.01
    ramp = (torch.arange(21.0) / 20).expand(2000, 1, 21, 21).clone()
    moved = (0.5 - Nuisance(shift=3.0).seen(ramp, draws(2000))[:, 0, 10, 10]) * 20
    assert -3 <= moved.amin() < -2.95 and 2.95 < moved.amax() <= 3
    assert abs(float(moved.std()) - 3 / 3**0.5) < 0.1
    below = (0.5 - Nuisance(shift=3.0).seen(ramp.mT, draws(2000))[:, 0, 10, 10]) * 20
    assert -3 <= below.amin() < -2.95 and 2.95 < below.amax() <= 3
    assert abs(float((below * moved).mean())) < 0.3, "both directions are independent"


def test_contrast_moves_values_away_from_grey_and_noise_has_its_deviation() -> None:
    x = torch.tensor([0.3, 0.5, 0.7]).expand(500, 1, 1, 3).clone()
    changed = Nuisance(contrast=0.5).seen(x, draws(500))[:, 0, 0]
    assert torch.equal(changed[:, 1], torch.full((500,), 0.5))
    assert torch.allclose(changed[:, 0] + changed[:, 2], torch.ones(500))
    assert changed[:, 2].amin() < 0.61 and changed[:, 2].amax() > 0.79
    grey = torch.full((50, 1, 20, 20), 0.5)
    noise = Nuisance(noise=0.05).seen(grey, draws(50)) - 0.5
    assert abs(float(noise.std()) - 0.05) < 1e-3 and abs(float(noise.mean())) < 1e-3


def test_scale_and_rotation_are_about_the_middle() -> None:
    x = torch.zeros(400, 1, 21, 21)
    x[:, :, 6:15, 6:15] = 1
    area = Nuisance(smallest=0.5, largest=2.0).seen(x, draws(400)).sum((1, 2, 3))
    assert 81 / 4 * 0.9 < area.amin() <= 25 and 270 < area.amax() < 81 * 4 * 1.1
    turned = Nuisance(degrees=30.0).seen(x, draws(400))
    assert (turned[:, 0, 10, 10] == 1).all() and (turned.sum((1, 2, 3)) - 81).abs().amax() < 1.5
    most = rotate_and_shift(x[:1], torch.tensor([torch.pi / 6]), torch.zeros(1, 2))
    assert (turned - most).abs().flatten(1).amax(1).amin() < 0.05, "some draw is close to the end"


def test_blur_keeps_the_sum_and_spreads_a_point() -> None:
    x = torch.zeros(300, 1, 15, 15)
    x[:, :, 7, 7] = 1
    blurred = Nuisance(blur=1.0).seen(x, draws(300))
    assert torch.allclose(blurred.sum((1, 2, 3)), torch.ones(300), atol=1e-5)
    middle = blurred[:, 0, 7, 7]
    assert middle.amax() > 0.999 and abs(float(middle.amin()) - 0.1592) < 0.01
    assert torch.allclose(blurred, blurred.transpose(2, 3), atol=1e-6)


def test_gradients_pass_noise_clamp_and_quantisation() -> None:
    x = random_images((1, 8, 8), 6).requires_grad_()
    torch.autograd.backward(Nuisance(brightness=1.0, noise=0.2, quality=5).seen(x, draws(6)).sum())
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_quantisation_is_that_of_the_jpeg_corruption() -> None:
    x = random_images((3, 16, 16), 2)
    coarse, fine = (Nuisance(quality=q).seen(x, draws(2)) for q in (5, 95))
    levels = fine * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert (coarse - x).abs().mean() > 5 * (fine - x).abs().mean()


def test_severity_scales_every_range() -> None:
    half, double = WIDE.times(0.5), WIDE.times(2)
    assert (half.degrees, half.smallest, half.largest, half.quality) == (10.0, 0.9, 1.125, 70)
    assert (double.shift, double.noise, double.quality) == (4.0, 0.2, 1)
    assert WIDE.times(1) == WIDE
    assert (half.share, half.draws) == (WIDE.share, WIDE.draws)


@pytest.mark.parametrize(
    "values", [{"share": 0.0}, {"draws": 0}, {"smallest": 1.1}, {"quality": 101}, {"noise": -0.1},
               {"degrees": float("nan")}],
)  # fmt: skip
def test_values_without_meaning_are_refused(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} of a nuisance is .*; use"):
        Nuisance(**values)  # type: ignore[arg-type]


@pytest.mark.row("G14")
def test_every_field_is_part_of_the_rules_and_none_of_them_without_a_nuisance() -> None:
    ball = Linf(Fraction(1, 5))
    plain = ThreatModel("a", "digits", ball)
    changed = {**SINGLE, "share": 0.5, "draws": 3}
    assert changed.keys() == {field.name for field in fields(Nuisance)}
    ids = {
        ThreatModel("a", "digits", ball, nuisance=Nuisance(**{name: value})).id  # type: ignore[arg-type]
        for name, value in changed.items()
    }
    assert len(ids) == len(changed)
    assert {plain.id, ThreatModel("a", "digits", ball, nuisance=Nuisance()).id}.isdisjoint(ids)
    assert "nuisance" not in plain.rules()
