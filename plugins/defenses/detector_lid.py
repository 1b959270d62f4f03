"""The LID detector: attacked images lie where the data is locally of higher dimension.

Ma et al. 2018, arXiv:1801.02613.
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

NEIGHBOURS = 20
BATCH = 100  # clean images among which neighbours are looked for
TINY = 1e-12  # of a squared distance, so that it has a logarithm
FLAT = 1e-6  # least mean log ratio: neighbours at one and the same distance


def lid(points: Tensor, reference: Tensor, k: int) -> Tensor:
    """-(1/k sum_i log(r_i / r_k))^-1 [n]: the local intrinsic dimension at points [n, d].

    r_1 <= ... <= r_k are the distances to the k nearest of `reference` [m, d]; a maximum-likelihood
    estimate that no scaling changes (arXiv:1801.02613, eq. 4).
    """
    square = points.square().sum(1, keepdim=True) - 2 * points @ reference.T
    square = (square + reference.square().sum(1)).clamp_min(TINY)
    nearest = square.topk(k, dim=1, largest=False, sorted=True).values.log() / 2
    return 1 / (nearest[:, -1:] - nearest).mean(1).clamp_min(FLAT)


class LIDDetector(nn.Module):
    """<w, LID of each layer> + b - threshold, neighbours among a fixed batch of clean images.

    The paper looks for neighbours in the minibatch at hand; with a fixed one an image's score does
    not depend on its companions.
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        for layer, size in enumerate(sizes):
            self.register_buffer(f"reference{layer}", torch.zeros(BATCH, size))
        self.register_buffer("weight", torch.zeros(len(sizes)))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Layers' outputs to [n]: the rejection score less its threshold."""
        return (self.dimensions(outputs) * self.weight).sum(1) + self.bias - self.threshold

    def dimensions(self, outputs: list[Tensor]) -> Tensor:
        """[n, layers]: the LID at each layer."""
        every = [
            lid(output, self.get_buffer(f"reference{layer}"), NEIGHBOURS)
            for layer, output in enumerate(outputs)
        ]
        return torch.stack(every, 1)

    def learn(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Keep the first images as neighbours, fit the regression on a part of the others."""
        for layer, output in enumerate(clean):
            self.get_buffer(f"reference{layer}").copy_(output[:BATCH])
        rest = slice(BATCH, None)
        clean, attacked = ([output[rest] for output in outputs] for outputs in (clean, attacked))
        taught, held_back = split(len(clean[0]))
        weight, bias = logistic(
            self.dimensions(part(clean, taught)), self.dimensions(part(attacked, taught))
        )
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        calibrate(self, part(clean, held_back))


def detector(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The detector of the base network for these images, nothing learned yet."""
    return LIDDetector(widths(shape, classes))


def build(loader: Loader) -> nn.Module:
    """The undefended network, guarded."""
    return guarded(loader, detector(loader.shape, loader.classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the detector that knows PGD."""
    yield Defense(
        name="detector-lid",
        cite="arXiv:1801.02613",
        summary=f"Rejects by the local intrinsic dimension of every layer, {NEIGHBOURS} of "
        f"{BATCH} neighbours.",
        recipe=recipe(detector),
        build=build,
        rejects=RATE,
        quick=False,
        detail={"rows": ("F11",)},
    )
