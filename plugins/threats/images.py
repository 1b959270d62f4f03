"""The boards of the larger images: the radii of the literature, all gradients known."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bench.plugin import L2, Fraction, Linf, PerturbationSet, ThreatModel, hookimpl


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Declare one board for each data set and radius."""
    few = ("fgsm", "pgd", "pgd-margin")
    yield board("mnist-linf", "mnist", Linf(Fraction(1, 10)), few, 10)
    yield board("fashion-linf", "fashion-mnist", Linf(Fraction(1, 10)), few, 11)
    yield board("cifar10-linf", "cifar10", Linf(Fraction(8, 255)), few, 12)
    yield board("cifar10-l2", "cifar10", L2(Fraction(1, 2)), ("fgm-l2", "pgd", "pgd-margin"), 13)
    # With a hundred classes, one run for each other class would be 99 runs an image.
    yield board("cifar100-linf", "cifar100", Linf(Fraction(8, 255)), ("fgsm", "pgd"), 14)
    if os.environ.get("BENCH_IMAGE_FOLDER"):
        yield board("folder-linf", "image-folder", Linf(Fraction(4, 255)), ("fgsm", "pgd"), 15)


def board(
    name: str, dataset: str, ball: PerturbationSet, required: tuple[str, ...], order: int
) -> ThreatModel:
    """A white-box board, its sentence made from its numbers."""
    return ThreatModel(
        name,
        dataset,
        ball,
        required=required,
        order=order,
        summary=f"{ball.name} changes up to {ball.eps} on {dataset}; all is known.",
    )
