"""Thermometer encoding: a pixel becomes a vector of bits, as many ones as its intensity.

Buckman et al. 2018 (https://openreview.net/forum?id=S18Su--CW); broken in arXiv:1802.00420.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Loader,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
    require_type,
)
from plugins.defenses._cnn import cnn
from plugins.defenses._logit_space_ascent import LogitSpaceAscent
from plugins.defenses._losses import clean_loss
from plugins.defenses._preprocessing import PreprocessedModel

LEVELS = 16
INNER = LogitSpaceAscent(radius=0.2, levels=LEVELS)
"""The attack of the adversarial training, with the radius 51/255 of the other digits defenses."""
RAMP = 0.25  # of the range; the gradient of a ramp as narrow as one level misleads an attack


def thresholds(like: Tensor, levels: int) -> Tensor:
    """The thresholds k / levels for k = 1..levels, shaped [levels, 1, 1]."""
    return (torch.arange(1, levels + 1, device=like.device) / levels)[:, None, None]


def thermometer(images: Tensor, levels: int = LEVELS) -> Tensor:
    """Bits [n, C * levels, H, W] of images [n, C, H, W]: bit k is 1 where x >= k / levels."""
    return (images[:, :, None] >= thresholds(images, levels)).to(images).flatten(1, 2)


def soft_thermometer(images: Tensor, levels: int = LEVELS) -> Tensor:
    """The bits [n, C * levels, H, W] in the forward, with the gradient of ramps of width RAMP."""
    ramps = ((images[:, :, None] - thresholds(images, levels)) / RAMP + 0.5).clamp(0, 1)
    soft = ramps.flatten(1, 2)
    return soft + (thermometer(images, levels) - soft).detach()


def thermometer_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network on the bits."""
    channels, height, width = shape
    return PreprocessedModel(cnn((channels * LEVELS, height, width), classes), thermometer)


def build(loader: Loader) -> nn.Module:
    """The trained network on the bits."""
    return loader.trained(thermometer_cnn(loader.shape, loader.classes))


def bpda(loader: Loader) -> nn.Module:
    """The BPDA approximation: the same network on bits with the gradient of ramps."""
    network = require_type(build(loader), PreprocessedModel, "the network on the bits")
    return PreprocessedModel(network.classifier, soft_thermometer)


def ascent_loss(batch: TrainingBatch, inner: LogitSpaceAscent = INNER) -> Tensor:
    """The cross-entropy [n] of the images of the inner attack on the code of each pixel."""
    network = require_type(batch.model, PreprocessedModel, "the network on the bits")
    return cross_entropy(network(inner.images(network.classifier, batch.x, batch.y)), batch.y)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the encoding, trained on clean images and on those of LS-PGA."""
    yield Defense(
        name="thermometer",
        cite="https://openreview.net/forum?id=S18Su--CW",
        summary=f"Encodes each pixel as {LEVELS} bits, without a gradient of its own.",
        recipe=Recipe(thermometer_cnn, clean_loss, epochs=20, rate=2e-3, schedule="cosine"),
        build=build,
        bpda=bpda,
        quick=False,
    )
    yield Defense(
        name="thermometer-training",
        cite="https://openreview.net/forum?id=S18Su--CW",
        summary=f"Encodes each pixel as {LEVELS} bits; trained on LS-PGA images, L-infinity .2.",
        recipe=Recipe(
            thermometer_cnn, ascent_loss, epochs=30, rate=2e-3, schedule="cosine",
            options=asdict(INNER),
        ),
        build=build,
        bpda=bpda,
        quick=False,
    )  # fmt: skip
