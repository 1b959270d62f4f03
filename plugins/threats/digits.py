"""The boards of the embedded digits: one attacker each, from every gradient to labels alone."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import L1, L2, Access, Budget, Fraction, Goal, Linf, ThreatModel, hookimpl

EPS = Fraction(51, 255)
"""A fifth of the way from black to white."""


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Declare the ranked boards first, then those that are evidence only."""
    yield ThreatModel(
        "digits-linf",
        "digits",
        Linf(EPS),
        required=("random", "fgsm", "bim", "pgd", "pgd-margin", "transfer", "joint-pgd"),
        order=1,
        summary="Every pixel may change by 51/255; the attacker knows everything.",
    )
    yield ThreatModel(
        "digits-l2",
        "digits",
        L2(Fraction(1)),
        required=("random", "fgm-l2", "pgd", "pgd-margin"),
        order=2,
        summary="Changes of Euclidean length 1; the attacker knows everything.",
    )
    yield ThreatModel(
        "digits-l1",
        "digits",
        L1(Fraction(2)),
        required=("random", "fgm-l1", "pgd", "pgd-margin"),
        order=3,
        summary="Changes that sum to 2 pixels; the attacker knows everything.",
    )
    yield ThreatModel(
        "digits-labels",
        "digits",
        L2(Fraction(1)),
        access=Access.LABELS,
        budget=Budget(queries=1000),
        required=("boundary",),
        order=4,
        summary="Changes of Euclidean length 1; the attacker sees 1000 labels an image, no more.",
    )
    yield from evidence()


def evidence() -> Iterator[ThreatModel]:
    """The boards that rank nobody: what they show is read beside a rank."""
    yield ThreatModel(
        "digits-targeted",
        "digits",
        Linf(EPS),
        goal=Goal("targeted", "next"),
        required=("pgd",),
        ranked=False,
        order=5,
        summary="Every pixel may change by 51/255, and the answer must become the next digit.",
    )
    yield ThreatModel(
        "digits-nearest",
        "digits",
        L2(Fraction(8)),
        goal=Goal("nearest"),
        required=("deepfool",),
        ranked=False,
        order=6,
        summary="How far the nearest wrong answer is; the radius 8 holds every image there is.",
    )
    yield ThreatModel(
        "digits-box",
        "digits",
        Linf(Fraction(1)),
        required=("unbounded",),
        ranked=False,
        order=7,
        summary="Any image at all: who still seems robust here hides its gradients.",
    )
