"""Threat models of the digits data set: white-box in three norms, labels only, diagnostic."""

from __future__ import annotations

from collections.abc import Iterator

from bench.plugin import L1, L2, Access, Budget, Fraction, Goal, Linf, ThreatModel, hookimpl

EPS = Fraction(51, 255)
"""A fifth of the range of a pixel."""


@hookimpl
def bench_threat_models() -> Iterator[ThreatModel]:
    """Register the ranked threat models first, then those that serve as evidence only."""
    yield ThreatModel(
        "digits-linf",
        "digits",
        Linf(EPS),
        required=("random", "fgsm", "bim", "pgd", "pgd-margin", "transfer", "joint-pgd"),
        order=1,
        summary="Every pixel may change by 51/255; white-box.",
    )
    yield ThreatModel(
        "digits-l2",
        "digits",
        L2(Fraction(1)),
        required=("random", "fgm-l2", "pgd", "pgd-margin"),
        order=2,
        summary="Changes of Euclidean length 1; white-box.",
    )
    yield ThreatModel(
        "digits-l1",
        "digits",
        L1(Fraction(2)),
        required=("random", "fgm-l1", "pgd", "pgd-margin"),
        order=3,
        summary="Absolute changes that sum to 2 pixels; white-box.",
    )
    yield ThreatModel(
        "digits-labels",
        "digits",
        L2(Fraction(1)),
        access=Access.LABELS,
        budget=Budget(queries=1000),
        required=("boundary",),
        order=4,
        summary="Changes of Euclidean length 1; labels only, 1000 queries an image.",
    )
    yield from evidence()


def evidence() -> Iterator[ThreatModel]:
    """Threat models without a ranking; their results are shown beside the ranking of the others."""
    yield ThreatModel(
        "digits-targeted",
        "digits",
        Linf(EPS),
        goal=Goal("targeted", "next"),
        required=("pgd",),
        ranked=False,
        order=5,
        summary="Every pixel may change by 51/255; the target is the next digit; white-box.",
    )
    yield ThreatModel(
        "digits-nearest",
        "digits",
        L2(Fraction(8)),
        goal=Goal("nearest"),
        required=("deepfool",),
        ranked=False,
        order=6,
        summary="Distance of the nearest adversarial example; radius 8 covers every image.",
    )
    yield ThreatModel(
        "digits-box",
        "digits",
        Linf(Fraction(1)),
        required=("unbounded",),
        ranked=False,
        order=7,
        summary="Any image in the pixel box: apparent robustness here indicates masked gradients.",
    )
