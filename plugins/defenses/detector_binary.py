"""Binary detector: logistic regression on the last hidden layer separates attacked from clean.

Metzen et al. 2017, arXiv:1702.04267, with a regression in place of their network.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.plugin import Defense, hookimpl
from plugins.defenses._detector import LinearDetector, detector_defense, layer_widths

HIDDEN = -2  # the layer before the logits


class BinaryDetector(LinearDetector):
    """Scores the output h(x) of the last hidden layer: <w, h(x)> + b."""

    def features(self, outputs: list[Tensor]) -> Tensor:
        """The output [n, d] of the last hidden layer."""
        return outputs[HIDDEN]


def make_detector(shape: tuple[int, int, int], classes: int) -> BinaryDetector:
    """The detector of the base network for images of this shape, not fitted yet."""
    return BinaryDetector(layer_widths(shape, classes)[HIDDEN])


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the detector, fitted to PGD images."""
    yield detector_defense(
        make_detector,
        name="detector-binary",
        cite="arXiv:1702.04267",
        summary="Rejects images that a logistic regression on the last hidden layer takes for PGD.",
    )
