"""Threat models of the digits data set: white-box in three norms, labels only, diagnostic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.plugin import (
    L0,
    L1,
    L2,
    SHARED,
    Access,
    Budget,
    Fraction,
    Goal,
    L2Delta,
    LeaderboardProtocol,
    Linf,
    LinfDelta,
    Nuisance,
    PerturbationSet,
    RotationTranslation,
    ThreatModel,
    hookimpl,
)
from plugins.threats._protocols import corruptions, label_protocol, white_box_protocol

EPS = Fraction(51, 255)
"""A fifth of the range of a pixel."""
SURROGATES = {"standard": "undefended", "robust": "pgd-training"}


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register the ranked threat models first, then those that serve as evidence only."""
    linf, l2, l1 = Linf(EPS), L2(Fraction(1)), L1(Fraction(2))
    balls: tuple[Linf | L2 | L1, ...] = (linf, l2, l1)
    yield white_box("digits-linf", linf, 1, "Every pixel may change by 51/255; white-box.")
    yield white_box("digits-l2", l2, 2, "Changes of Euclidean length 1; white-box.")
    yield white_box("digits-l1", l1, 3, "Absolute changes that sum to 2 pixels; white-box.")
    yield ThreatModel(
        "digits-labels",
        "digits",
        l2,
        access=Access.LABELS,
        budget=Budget(queries=1000),
        protocol=label_protocol("L2", SURROGATES),
        order=4,
        summary="Changes of Euclidean length 1; labels only, 1000 queries an image.",
    )
    yield from evidence()
    yield one_pixel()
    yield rotated()
    yield physical()
    yield corruptions("digits", 35)
    yield from shared()
    for place, ball in enumerate(balls):
        yield from half_and_double(f"digits-{ball.name.lower()}", ball, 20 + 2 * place)


def one_pixel() -> ThreatModel:
    """One pixel, without a ranking: attacks in convex norm balls do not apply."""
    return ThreatModel(
        "digits-one-pixel",
        "digits",
        L0(Fraction(1)),
        protocol=LeaderboardProtocol(ranked=False),
        order=34,
        summary="One pixel may take any value; white-box.",
    )


def rotated() -> ThreatModel:
    """Rotations and shifts, without a ranking: attacks in norm balls do not apply."""
    return ThreatModel(
        "digits-rotation",
        "digits",
        RotationTranslation(degrees=30.0, pixels=1.0),
        protocol=LeaderboardProtocol(ranked=False),
        order=30,
        summary="Rotation by up to 30 degrees and shifts by up to one pixel; white-box.",
    )


def physical() -> ThreatModel:
    """Linf changes of an object that is seen under varying conditions, without a ranking."""
    nuisance = Nuisance(
        shift=0.5, smallest=0.9, largest=1.1, degrees=10.0, brightness=0.1, contrast=0.1, noise=0.05
    )
    return ThreatModel(
        "digits-physical",
        "digits",
        Linf(EPS),
        protocol=LeaderboardProtocol(ranked=False),
        order=40,
        summary="As digits-linf, and each image is moved, rotated, scaled and lit at random.",
        nuisance=nuisance,
    )


def shared() -> Iterator[ThreatModel]:
    """One change for all images, fitted to the training half; without a ranking."""
    sets = (("linf", LinfDelta(eps=EPS)), ("l2", L2Delta(eps=Fraction(2))))
    for place, (norm, ball) in enumerate(sets):
        yield ThreatModel(
            f"digits-universal-{norm}",
            "digits",
            ball,
            protocol=LeaderboardProtocol(ranked=False),
            order=31 + place,
            summary=f"One change of {norm.capitalize()} size {ball.eps} for all images; white-box.",
            scope=SHARED,
        )


def white_box(name: str, ball: PerturbationSet, order: int, summary: str) -> ThreatModel:
    """A ranked threat model with gradient access."""
    protocol = white_box_protocol(ball.name, SURROGATES, (f"{name}-half", f"{name}-double"))
    return ThreatModel(name, "digits", ball, protocol=protocol, order=order, summary=summary)


def half_and_double(name: str, ball: Linf | L2 | L1, order: int) -> Iterator[ThreatModel]:
    """The same threat model at half and at double the radius, where PGD shows its progress."""
    for place, (word, factor) in enumerate((("half", Fraction(1, 2)), ("double", Fraction(2)))):
        yield ThreatModel(
            f"{name}-{word}",
            "digits",
            replace(ball, eps=ball.eps * factor),
            protocol=LeaderboardProtocol(required=("pgd",), ranked=False),
            order=order + place,
            summary=f"As {name}, at {word} the radius: success must rise with the radius.",
        )


def evidence() -> Iterator[ThreatModel]:
    """Threat models without a ranking; their results are shown beside the ranking of the others."""
    yield ThreatModel(
        "digits-targeted",
        "digits",
        Linf(EPS),
        goal=Goal("targeted", "next"),
        protocol=LeaderboardProtocol(required=("pgd",), ranked=False),
        order=5,
        summary="Every pixel may change by 51/255; the target is the next digit; white-box.",
    )
    yield ThreatModel(
        "digits-nearest",
        "digits",
        L2(Fraction(8)),
        goal=Goal("nearest"),
        protocol=LeaderboardProtocol(required=("deepfool",), ranked=False),
        order=6,
        summary="Distance of the nearest adversarial example; radius 8 covers every image.",
    )
    yield ThreatModel(
        "digits-box",
        "digits",
        Linf(Fraction(1)),
        protocol=LeaderboardProtocol(required=("unbounded",), ranked=False),
        order=7,
        summary="Any image in the pixel box: apparent robustness here indicates masked gradients.",
    )
