"""Threat models of the image data sets: white-box, with the radii of the literature."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bench.plugin import L2, Fraction, Linf, PerturbationSet, ThreatModel, hookimpl


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register one threat model for each data set and radius."""
    required = ("fgsm", "pgd", "pgd-margin")
    yield white_box("mnist-linf", "mnist", Linf(Fraction(1, 10)), required, 10)
    yield white_box("fashion-linf", "fashion-mnist", Linf(Fraction(1, 10)), required, 11)
    yield white_box("cifar10-linf", "cifar10", Linf(Fraction(8, 255)), required, 12)
    yield white_box(
        "cifar10-l2", "cifar10", L2(Fraction(1, 2)), ("fgm-l2", "pgd", "pgd-margin"), 13
    )
    # With a hundred classes, one restart for each other class would be 99 restarts an image.
    yield white_box("cifar100-linf", "cifar100", Linf(Fraction(8, 255)), ("fgsm", "pgd"), 14)
    if os.environ.get("BENCH_IMAGE_FOLDER"):
        yield white_box("folder-linf", "image-folder", Linf(Fraction(4, 255)), ("fgsm", "pgd"), 15)


def white_box(
    name: str, dataset: str, ball: PerturbationSet, required: tuple[str, ...], order: int
) -> ThreatModel:
    """A white-box threat model whose summary states its numbers."""
    return ThreatModel(
        name,
        dataset,
        ball,
        required=required,
        order=order,
        summary=f"{ball.name} changes up to {ball.eps} on {dataset}; white-box.",
    )
