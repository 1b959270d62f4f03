"""A binary detector: a second model that tells attacked features from clean ones.

Metzen et al. 2017, arXiv:1702.04267, as a logistic regression on the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl
from plugins.defenses._detector import (
    RATE,
    calibrate,
    guarded,
    logistic,
    part,
    recipe,
    split,
    widths,
)

HIDDEN = -2  # the layer before the logits


class BinaryDetector(nn.Module):
    """<w, h(x)> + b - threshold on the last hidden layer h."""

    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(width))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Layers' outputs to [n]: the rejection score less its threshold."""
        return (outputs[HIDDEN] * self.weight).sum(1) + self.bias - self.threshold

    def learn(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Fit the regression on one part of the images; the others set the threshold."""
        taught, held_back = split(len(clean[HIDDEN]))
        weight, bias = logistic(clean[HIDDEN][taught], attacked[HIDDEN][taught])
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        calibrate(self, part(clean, held_back))


def detector(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The detector of the base network for these images, nothing learned yet."""
    return BinaryDetector(widths(shape, classes)[HIDDEN])


def build(loader: Loader) -> nn.Module:
    """The undefended network, guarded."""
    return guarded(loader, detector(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the detector that knows PGD."""
    yield Defense(
        name="detector-binary",
        cite="arXiv:1702.04267",
        summary="Rejects what a logistic regression on the last hidden layer takes for PGD.",
        recipe=recipe(detector),
        build=build,
        rejects=RATE,
        quick=False,
        detail={"rows": ("F12",)},
    )
