"""Measures of finished adversarial images behind a nuisance: share of draws, destruction rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.engine.model_access import SeededNoise
from bench.evaluation.nuisance_model import seen_through
from bench.plugin import Nuisance
from bench.referee.fresh_model import FreshModel


def labels_over_draws(
    model: nn.Module, images: Tensor, nuisance: Nuisance, *, draws: int = 100, seed: int = 0
) -> Tensor:
    """Labels [draws, n] int64 of images [n, C, H, W] at fresh draws of a nuisance.

    The draws are fixed by the seed, and no attack of the harness has seen them.
    """
    noise = SeededNoise(seed, "draws of finished images", images.device)
    fresh = FreshModel(seen_through(nuisance, model), noise=noise)
    groups = range(math.ceil(len(images) / fresh.rows))
    return fresh.answer(images, groups, draws=draws).votes


def destruction_rate(
    model: nn.Module, x: Tensor, adv: Tensor, y: Tensor, nuisance: Nuisance,
    *, draws: int = 20, seed: int = 0,
) -> float:  # fmt: skip
    """The share of adversarial images that a nuisance makes right again (arXiv:1607.02533).

    Among images x [n, C, H, W] that are right, with labels y [n], and wrong as `adv`; the mean over
    draws. NaN where there is none.
    """
    with torch.no_grad():
        fooled = (model(x).argmax(1) == y) & (model(adv).argmax(1) != y)
    if not fooled.any():
        return math.nan
    found = labels_over_draws(model, adv[fooled], nuisance, draws=draws, seed=seed)
    return float((found == y[fooled]).double().mean())
