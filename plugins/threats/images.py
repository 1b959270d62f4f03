"""Threat models of the image data sets: white-box, with the radii of the literature."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from bench.plugin import (
    L2,
    SHARED,
    Fraction,
    LeaderboardProtocol,
    Linf,
    MaskedPattern,
    PerturbationSet,
    RandomPatch,
    ThreatModel,
    hookimpl,
    print_and_scan,
)
from plugins.threats._protocols import corruptions, white_box_protocol

STANDARD = "undefended-images"
"""A public surrogate for any images, which is trained before the first transfer attack."""


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register one threat model for each data set and radius."""
    yield white_box("mnist-linf", "mnist", Linf(Fraction(1, 10)), 10, surrogate="mnist-standard")
    yield white_box(
        "fashion-linf", "fashion-mnist", Linf(Fraction(1, 10)), 11, surrogate="fashion-standard"
    )
    cifar10 = partial(white_box, dataset="cifar10", surrogate="resnet2b-standard")
    yield cifar10("cifar10-linf", ball=Linf(Fraction(8, 255)), order=12)
    yield cifar10("cifar10-l2", ball=L2(Fraction(1, 2)), order=13)
    yield white_box("cifar100-linf", "cifar100", Linf(Fraction(8, 255)), 14, without=MANY_CLASSES)
    yield ThreatModel(
        "fashion-patch",
        "fashion-mnist",
        RandomPatch(size=8, smallest=0.8, largest=1.2, degrees=20.0),
        protocol=LeaderboardProtocol(ranked=False),
        order=33,
        summary="One patch of about 8 x 8 pixels at a random place of all images; white-box.",
        scope=SHARED,
    )
    yield ThreatModel(
        "fashion-print",
        "fashion-mnist",
        Linf(Fraction(1, 10)),
        protocol=LeaderboardProtocol(ranked=False),
        order=41,
        summary="As fashion-linf, and each image is printed and photographed before it is seen.",
        nuisance=print_and_scan(),
    )
    yield ThreatModel(
        "fashion-stickers",
        "fashion-mnist",
        MaskedPattern("stickers"),
        protocol=LeaderboardProtocol(ranked=False),
        order=42,
        summary="Two stickers of one pattern on all images, which are photographed; white-box.",
        scope=SHARED,
        nuisance=print_and_scan(),
    )
    for place, dataset in enumerate(("mnist", "fashion-mnist", "cifar10", "cifar100")):
        yield corruptions(dataset, 36 + place)
    if os.environ.get("BENCH_IMAGE_FOLDER"):
        own = LeaderboardProtocol(required=("fgsm", "pgd", "square", "hopskipjump"))
        yield ThreatModel(
            "folder-linf",
            "image-folder",
            Linf(Fraction(4, 255)),
            protocol=own,
            order=15,
            summary="Linf changes up to 4/255 on image-folder; white-box.",
        )


MANY_CLASSES = ("pgd-margin",)
"""One restart for each other class: 99 restarts an image with a hundred classes."""


def white_box(
    name: str,
    dataset: str,
    ball: PerturbationSet,
    order: int,
    without: tuple[str, ...] = (),
    surrogate: str = STANDARD,
) -> ThreatModel:
    """A ranked white-box threat model whose summary states its numbers."""
    protocol = white_box_protocol(ball.name, {"standard": surrogate})
    required = tuple(attack for attack in protocol.required if attack not in without)
    return ThreatModel(
        name,
        dataset,
        ball,
        protocol=replace(protocol, required=required),
        order=order,
        summary=f"{ball.name} changes up to {ball.eps} on {dataset}; white-box.",
    )
