"""LID detector: rejects images with a high local intrinsic dimension in the network's layers.

Ma et al. 2018, arXiv:1801.02613.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.plugin import Defense, hookimpl
from plugins.defenses._detector import LinearDetector, detector_defense, layer_widths

NEIGHBOURS = 20
BATCH = 100  # clean images among which the neighbours are searched
MIN_SQUARE = 1e-12  # of a squared distance, so that its logarithm is finite
MIN_LOG_RATIO = 1e-6  # mean log ratio where all neighbours are at the same distance


def lid(points: Tensor, reference: Tensor, k: int) -> Tensor:
    """The local intrinsic dimension -(1/k sum_i log(r_i / r_k))^-1 [n] at points [n, d].

    r_1 <= ... <= r_k are the distances to the k nearest of `reference` [m, d]. The estimate is of
    maximum likelihood and does not change with the scale (arXiv:1801.02613, eq. 4).
    """
    square = points.square().sum(1, keepdim=True) - 2 * points @ reference.T
    square = (square + reference.square().sum(1)).clamp_min(MIN_SQUARE)
    nearest = square.topk(k, dim=1, largest=False, sorted=True).values.log() / 2
    return 1 / (nearest[:, -1:] - nearest).mean(1).clamp_min(MIN_LOG_RATIO)


class LIDDetector(LinearDetector):
    """Scores the LID of each layer: <w, LID> + b, neighbours from a fixed batch of clean images.

    The paper searches the neighbours in the current minibatch. With a fixed batch the score of an
    image does not depend on the other images.
    """

    def __init__(self, sizes: list[int]) -> None:
        """Register the buffers for layers of `sizes` values each."""
        super().__init__(len(sizes))
        for layer, size in enumerate(sizes):
            self.register_buffer(f"reference{layer}", torch.zeros(BATCH, size))

    def features(self, outputs: list[Tensor]) -> Tensor:
        """The LID at each layer [n, layers]."""
        dimensions = [
            lid(output, self.get_buffer(f"reference{layer}"), NEIGHBOURS)
            for layer, output in enumerate(outputs)
        ]
        return torch.stack(dimensions, 1)

    def fit(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Keep the first images [BATCH, d] as neighbours and fit the regression to the others."""
        for layer, output in enumerate(clean):
            self.get_buffer(f"reference{layer}").copy_(output[:BATCH])
        rest = slice(BATCH, None)
        super().fit([output[rest] for output in clean], [output[rest] for output in attacked])


def make_detector(shape: tuple[int, int, int], classes: int) -> LIDDetector:
    """The detector of the base network for images of this shape, not fitted yet."""
    return LIDDetector(layer_widths(shape, classes))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the detector, fitted to PGD images."""
    yield detector_defense(
        make_detector,
        name="detector-lid",
        cite="arXiv:1801.02613",
        summary="Rejects by the local intrinsic dimension at every layer, from the "
        f"{NEIGHBOURS} nearest of {BATCH} clean images.",
    )
