"""Further measures of a defense, from its stored outcomes: confidence, targets, risk, costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.cards import AttackCard
from bench.core.statistics import Count, count_interval
from bench.results.example_results import DefenseResult, LeaderboardResults
from bench.results.target_pairs import joined
from bench.results.true_class import worst_of
from bench.store import CellRow

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CONFIDENCE_LEVELS = (0.5, 0.1)
"""Confidences of the true class below which examples are counted."""
TOP_K = (1, 5)
PGD_NAMES = ("pgd", "pgd-restarts")
"""Attacks that are projected gradient descent with a number of restarts."""


@dataclass(frozen=True)
class ConfidenceDrop:
    """By how much the softmax of the true class falls, over examples that are right when clean.

    Of each example the worst admissible image of any attack counts, the clean one among them. An
    attack that stops at its first success reduces confidence no further, so this is a lower bound.
    """

    n: int
    """Correctly classified examples that were measured, clean and attacked."""
    of: int
    """Correctly classified examples."""
    before: float
    """Mean confidence on the clean images."""
    after: float
    mean: float
    """Mean of before less after."""
    quantiles: tuple[tuple[float, float], ...]
    """(probability, quantile) of before less after."""
    below: tuple[tuple[float, Count], ...]
    """(level, examples whose confidence after is below it)."""


@dataclass(frozen=True)
class SourceTarget:
    """The examples of one true class that were turned into one other class."""

    source: int
    target: int
    reached: int
    attempted: int
    """Under an untargeted goal all examples of the source class."""


@dataclass(frozen=True)
class TargetedSuccess:
    """Source classes against target classes, over examples that are right on the clean image.

    Under an untargeted goal an example is counted for each class that an attack turned it into.
    """

    targeted: bool
    """Whether the goal names the target class."""
    reached: Count | None
    """(example, target) pairs that an attack reached, of those it tried; None when untargeted."""
    pairs: tuple[SourceTarget, ...]
    """The entries that are not 0 of 0; under an untargeted goal those that are not 0."""


@dataclass(frozen=True)
class TopKError:
    """Examples whose true class is not among the k highest scores."""

    k: int
    clean: Count
    robust: Count
    """On the clean image or on an admissible image of any attack; attacks aim at the first place,
    so for k above 1 this is a lower bound."""


@dataclass(frozen=True)
class Risk:
    """Mean cross-entropy of the true class."""

    n: int
    """Examples with a finite answer to the clean image."""
    clean: float
    adversarial: float
    """Of the largest loss among the clean image and all admissible images; at least `clean`, and a
    lower bound of the expected maximum."""


@dataclass(frozen=True)
class FirstOrderGap:
    """Robust accuracy under PGD less that under all attacks that use gradients of the defense."""

    attack: str
    """The PGD attack with the most restarts."""
    pgd: Count
    all_gradient: Count
    gap: float
    """As a fraction; never negative, because PGD is one of the attacks."""


@dataclass(frozen=True)
class AttackCost:
    """The cost of one attack, averaged over the examples that it ran on."""

    attack: str
    seconds: float
    """CPU seconds per example."""
    queries: float
    """Forward passes per example, those of gradient evaluations included."""
    gradients: float
    """Gradient evaluations per example."""


@dataclass(frozen=True)
class SharedPointResult:
    """What one point does to all examples, and what fitting it to training images has cost."""

    attack: str
    changed: Count
    """Examples whose predicted class it changes, right or wrong on the clean image: the fooling
    rate of arXiv:1610.08401."""
    robust: Count
    """Examples that are right on the clean image and with the point."""
    queries: int
    """Queries of the fit; with several seeds of all fits, as are the other costs."""
    gradients: int
    """Gradient evaluations of the fit."""
    seconds: float
    """CPU seconds of the fit."""


@dataclass(frozen=True)
class Measures:
    """All measures of one defense; None where outcomes or attacks for one are missing."""

    confidence: ConfidenceDrop | None
    targets: TargetedSuccess | None
    top_k: tuple[TopKError, ...]
    risk: Risk | None
    first_order_gap: FirstOrderGap | None
    costs: tuple[AttackCost, ...]
    """By attack, the most seconds first."""
    shared: tuple[SharedPointResult, ...] = ()
    """By attack that makes one point for all examples."""


def measures(results: LeaderboardResults, result: DefenseResult) -> Measures:
    """The measures of one defense on one leaderboard."""
    attacked = result.has_clean_pass and bool(result.attacks)
    return Measures(
        confidence=confidence_drop(result) if attacked else None,
        targets=targeted_success(results, result) if attacked else None,
        top_k=top_k_errors(result) if attacked else (),
        risk=risk(result) if attacked else None,
        first_order_gap=first_order_gap(results, result) if attacked else None,
        costs=attack_costs(results, result.defense),
        shared=shared_points(results, result),
    )


def robust_on_correct(result: DefenseResult, attacks: Iterable[str] | None = None) -> Count:
    """Robust examples of those that are right when clean, under these attacks (None: all).

    Robust accuracy over all examples is clean accuracy times this share.
    """
    return count_interval(int(result.robust(attacks).sum()), int(result.clean.sum()))


def confidence_drop(result: DefenseResult) -> ConfidenceDrop | None:
    """The fall of the true class's softmax; None where no right example was measured."""
    worst = worst_of([attack.true_class for attack in result.attacks.values()])
    kept = result.clean & result.clean_class.measured & worst.measured
    if not kept.any():
        return None
    before = result.clean_class.confidence[kept]
    after = np.fmin(before, worst.confidence[kept])
    drop, n = before - after, int(kept.sum())
    return ConfidenceDrop(
        n=n,
        of=int(result.clean.sum()),
        before=float(before.mean()),
        after=float(after.mean()),
        mean=float(drop.mean()),
        quantiles=tuple((q, float(np.quantile(drop, q))) for q in QUANTILES),
        below=tuple((t, count_interval(int((after < t).sum()), n)) for t in CONFIDENCE_LEVELS),
    )


def targeted_success(results: LeaderboardResults, result: DefenseResult) -> TargetedSuccess:
    """The targets reached by any attack, by source and target class."""
    classes, labels = len(result.classes), result.labels.astype(np.int64)
    found = joined(attack.target_pairs for attack in result.attacks.values())
    reached = found.reached[result.clean[found.reached // classes]]
    attempted = found.attempted[result.clean[found.attempted // classes]]
    hits = _matrix(reached, labels, classes)
    targeted = results.leaderboard.goal["kind"] == "targeted"
    if targeted:
        tries = _matrix(attempted, labels, classes)
    else:
        tries = np.repeat(np.bincount(labels[result.clean], minlength=classes)[:, None], classes, 1)
    shown = np.argwhere((tries if targeted else hits) > 0).tolist()
    return TargetedSuccess(
        targeted=targeted,
        reached=count_interval(len(reached), len(attempted)) if targeted else None,
        pairs=tuple(SourceTarget(s, t, int(hits[s, t]), int(tries[s, t])) for s, t in shown),
    )


def _matrix(
    codes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """[K, K]: number of (example, class) pairs by true class and class."""
    example, label = np.divmod(codes, classes)
    flat = np.bincount(labels[example] * classes + label, minlength=classes * classes)
    return flat.reshape(classes, classes)


def top_k_errors(result: DefenseResult) -> tuple[TopKError, ...]:
    """The top-k errors for each k of TOP_K below the number of classes, over measured examples."""
    known = result.clean_class.measured
    clean = result.clean_class.rank[known]
    worst = worst_of(
        [result.clean_class, *(attack.true_class for attack in result.attacks.values())]
    ).rank[known]
    if not known.any():
        return ()
    return tuple(
        TopKError(k, _count(clean >= k), _count(worst >= k))
        for k in TOP_K
        if k < len(result.classes)
    )


def _count(flags: npt.NDArray[np.bool_]) -> Count:
    return count_interval(int(flags.sum()), len(flags))


def risk(result: DefenseResult) -> Risk | None:
    """The mean loss, clean and under attack; None where no clean loss is recorded."""
    clean = result.clean_class.loss
    known = ~np.isnan(clean)
    if not known.any():
        return None
    worst = worst_of(
        [result.clean_class, *(attack.true_class for attack in result.attacks.values())]
    ).loss
    return Risk(int(known.sum()), float(clean[known].mean()), float(worst[known].mean()))


def first_order_gap(results: LeaderboardResults, result: DefenseResult) -> FirstOrderGap | None:
    """PGD against all gradient attacks; None in a cascade, and where PGD is not done."""
    cards = [attack.card for attack in result.attacks.values()]
    climbing = [card for card in cards if card.needs == "gradients" and not card.source]
    runs = [card for card in climbing if card.name in PGD_NAMES]
    if not runs or results.leaderboard.mode != "full":
        return None
    pgd = max(runs, key=lambda card: (_restarts(card), card.name))
    of_pgd = result.robust([pgd.name])
    of_all = result.robust([card.name for card in climbing])
    gap = (int(of_pgd.sum()) - int(of_all.sum())) / max(1, len(of_pgd))
    return FirstOrderGap(pgd.name, _count(of_pgd), _count(of_all), gap)


def _restarts(card: AttackCard) -> int:
    return int(card.parameters.get("restarts", 1))


def attack_costs(results: LeaderboardResults, defense: str) -> tuple[AttackCost, ...]:
    """The costs of each finished attack against a defense, the most seconds first."""
    costs = [
        _cost(attack, [row for row in results.cells[defense, attack] if row.figures is not None])
        for attack in results.defenses[defense].attacks
    ]
    return tuple(sorted(costs, key=lambda cost: (-cost.seconds, cost.attack)))


def _cost(attack: str, done: Sequence[CellRow]) -> AttackCost:
    figures = [row.figures for row in done if row.figures is not None]
    items = max(1, sum(row.cell.items for row in done))
    return AttackCost(
        attack=attack,
        seconds=sum(row.seconds for row in done) / items,
        queries=sum(figure.forwards for figure in figures) / items,
        gradients=sum(figure.gradients for figure in figures) / items,
    )


def shared_points(
    results: LeaderboardResults, result: DefenseResult
) -> tuple[SharedPointResult, ...]:
    """The results of the attacks that make one point for all examples, the strongest first."""
    found = []
    for name, attack in result.attacks.items():
        rows = results.cells[result.defense, name]
        fits = [results.fits[row.key] for row in rows if row.key in results.fits]
        if fits:
            one = SharedPointResult(
                attack=name,
                changed=_count(attack.changed[attack.evaluated]),
                robust=_count(result.robust([name])[attack.evaluated]),
                queries=sum(fit.forwards for fit in fits),
                gradients=sum(fit.gradients for fit in fits),
                seconds=sum(fit.seconds for fit in fits),
            )
            found.append(one)
    return tuple(sorted(found, key=lambda one: (one.robust.k, one.attack)))


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one radius of a distortion curve."""

    radius: float
    robust: Count
    leaderboard: str
    """Name of the threat model; empty at radius 0, where it is clean accuracy."""


def distortion_curve(
    defense: str, siblings: Sequence[LeaderboardResults]
) -> tuple[CurvePoint, ...]:
    """Robust accuracy over the radii of leaderboards that differ in the radius alone.

    It is of the version of the defense on the first leaderboard that has it, and begins with clean
    accuracy at radius 0; empty where no attack is done anywhere.
    """
    digests = [one.defenses[defense].digest for one in siblings if defense in one.defenses]
    digest = digests[0] if digests else ""
    done = [
        (one.leaderboard.radius, one.defenses[defense], one.leaderboard.name)
        for one in siblings
        if defense in one.defenses
        and one.defenses[defense].digest == digest
        and one.defenses[defense].has_clean_pass
        and one.defenses[defense].attacks
    ]
    if not done:
        return ()
    points = [
        CurvePoint(r, _count(found.robust()), name)
        for r, found, name in sorted(done, key=lambda each: each[0])
    ]
    return (CurvePoint(0.0, _count(done[0][1].clean), ""), *points)


def seconds_text(seconds: float) -> str:
    """Seconds as text: two significant digits, whole seconds from ten on.

    >>> seconds_text(0.0017), seconds_text(9.96), seconds_text(113.2)
    ('0.0017', '10', '113')
    """
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
