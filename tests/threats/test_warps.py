"""Rotations and shifts of images."""

from __future__ import annotations

import math

import torch

from bench.threats.warps import rotate_and_shift, sine_cosine
from tests.threats.test_parametric import random_images


def test_a_quarter_turn_and_whole_shifts_move_pixels_exactly() -> None:
    x = random_images((2, 8, 8))
    turned = rotate_and_shift(
        x, torch.full((4,), math.pi / 2, dtype=torch.float64), torch.zeros(4, 2)
    )
    assert (turned - torch.rot90(x, 1, (2, 3))).abs().max() < 1e-12
    moved = rotate_and_shift(x, torch.zeros(4), torch.tensor([[1.0, 2.0]]).expand(4, 2))
    assert torch.equal(moved[:, :, 2:, 1:], x[:, :, :-2, :-1])
    assert (moved[:, :, :2] == 0).all() and (moved[:, :, :, :1] == 0).all()


def test_half_a_pixel_is_the_mean_of_two_and_black_outside() -> None:
    x = random_images((1, 6, 6))
    moved = rotate_and_shift(x, torch.zeros(4), torch.tensor([[0.5, 0.0]]).expand(4, 2))
    assert torch.allclose(moved[..., 1:], (x[..., 1:] + x[..., :-1]) / 2)
    assert torch.allclose(moved[..., 0], x[..., 0] / 2)


def test_sine_and_cosine_are_exact_to_float64() -> None:
    angle = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)
    sine, cosine = sine_cosine(angle)
    assert (sine - angle.sin()).abs().max() < 1e-15
    assert (cosine - angle.cos()).abs().max() < 1e-15
