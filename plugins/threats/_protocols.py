"""Protocols of the built-in leaderboards: an attack of each kind that the access allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.plugin import (
    CORRUPTION_ATTACKS,
    Access,
    Corruption,
    LeaderboardProtocol,
    ThreatModel,
)

GRADIENT: Mapping[str, tuple[str, ...]] = {
    "Linf": ("fgsm", "bim", "pgd", "pgd-margin", "apgd-ce", "apgd-t-nearest"),
    "L2": ("fgm-l2", "pgd", "pgd-margin", "apgd-ce", "apgd-t-nearest"),
    "L1": ("fgm-l1", "pgd", "apgd-l1-ce", "apgd-l1-t-nearest"),
}
SCORE = {"Linf": "square", "L2": "square-l2-100", "L1": "square-l1-100"}
"""In L2 and L1 on 100 examples: there Square breaks far fewer than gradient attacks do."""
SCORE_LONG = {"Linf": "square-long", "L2": "square-l2-5000", "L1": "square-l1-5000"}
DECISION: Mapping[str, tuple[str, ...]] = {
    "Linf": ("hopskipjump",), "L2": ("hopskipjump",), "L1": (),
}  # fmt: skip
"""No decision-based attack minimises an L1 distance."""
TRANSFER = {"standard": "transfer-standard", "robust": "transfer-robust"}
LEARNED = "transfer-learned"


def white_box_protocol(
    norm: str, surrogates: Mapping[str, str], evidence: Iterable[str] = ()
) -> LeaderboardProtocol:
    """The protocol of a ranked leaderboard whose attackers have gradients.

    `surrogates`: role of a public surrogate -> the defense that plays it; `evidence`: names of
    threat models that differ in the radius alone.
    """
    return LeaderboardProtocol(
        required=(
            "random", *GRADIENT[norm], *transfers(surrogates), SCORE[norm], *DECISION[norm],
            "joint-pgd",
        ),
        follow_ups=follow_ups(norm),
        surrogates=surrogates,
        evidence=tuple(evidence),
    )  # fmt: skip


def corruptions(dataset: str, order: int) -> ThreatModel:
    """Every corruption at every severity of a data set, without an attacker and without ranks."""
    return ThreatModel(
        f"{dataset}-corruptions",
        dataset,
        Corruption(),
        access=Access.NOTHING,
        protocol=LeaderboardProtocol(required=CORRUPTION_ATTACKS, ranked=False),
        order=order,
        summary=f"Corruptions of {dataset} at five severities; chosen by no attacker.",
    )


def label_protocol(norm: str, surrogates: Mapping[str, str]) -> LeaderboardProtocol:
    """The protocol of a ranked leaderboard whose attackers see labels only."""
    answers = follow_ups(norm)
    allowed = ("fixed adversarial examples", "learned surrogate", "decision-based attack")
    return LeaderboardProtocol(
        required=(*transfers(surrogates), "boundary", *DECISION[norm]),
        follow_ups={kind: answers[kind] for kind in allowed},
        surrogates=surrogates,
    )


def transfers(surrogates: Mapping[str, str]) -> tuple[str, ...]:
    """The transfer attacks: from the public surrogates, and from one learned from labels."""
    return (*(TRANSFER[role] for role in surrogates), LEARNED)


def follow_ups(norm: str) -> dict[str, tuple[str, ...]]:
    """The attacks that answer each kind of doubt, in this norm."""
    decision = ("hopskipjump-all",) if DECISION[norm] else ()
    return {
        "more steps": ("pgd-margin",) if norm == "L1" else ("pgd-restarts",),
        "rescaled logits": ("pgd-rescaled",),
        "EOT": ("pgd-eot",),
        "fixed adversarial examples": ("bank-standard", "bank-robust"),
        "learned surrogate": ("transfer-learned-strong",),
        "score-based attack": (SCORE_LONG[norm],),
        "decision-based attack": decision,
    }
