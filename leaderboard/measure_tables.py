"""The further measures of one defense as HTML: tiles, source and target classes, costs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.statistics import Count
from bench.results.defense_report import DefenseReport
from bench.results.measures import (
    AttackCost,
    ConfidenceDrop,
    Measures,
    SourceTarget,
    TargetedSuccess,
)
from leaderboard import markup, words
from leaderboard.markup import Column, Html

MATRIX_CLASSES = 12
"""Number of classes up to which source and target classes are a matrix."""
LISTED_PAIRS = 15
"""Pairs of classes that are listed where there are more classes."""


def measure_tiles(report: DefenseReport) -> Html:
    """The measures that are one figure; those that are not known are left out."""
    found = report.measures
    tiles = [_count_tile("Robust of the correctly classified", report.robust_on_correct)]
    if (drop := found.confidence) is not None:
        figure = f"{100 * drop.before:.0f} % → {100 * drop.after:.0f} %"
        means = f"clean and attacked, over {drop.n} of {drop.of} correctly classified examples"
        tiles.append(("Mean confidence of the true class", figure, means))
    if found.risk is not None:
        figure = f"{found.risk.clean:.2f} → {found.risk.adversarial:.2f}"
        tiles.append(("Risk (mean loss)", figure, f"clean and attacked, {found.risk.n} examples"))
    for error in found.top_k:
        if error.k > 1:
            tiles.append(_count_tile(f"Top-{error.k} error under attack", error.robust))
    if (gap := found.first_order_gap) is not None:
        means = f"{gap.attack} leaves {_k_of_n(gap.pgd)}, all gradient attacks {gap.all_gradient.k}"
        tiles.append(("First-order gap", f"{100 * gap.gap:.1f} points", means))
    if (targets := found.targets) is not None and targets.reached is not None:
        tiles.append(_count_tile("Targets reached", targets.reached))
    return markup.figure_tiles(tiles)


def _count_tile(label: str, count: Count) -> tuple[str, str, str]:
    return label, words.format_count(count), words.format_interval(count)


def _k_of_n(count: Count) -> str:
    return f"{count.k} of {count.n}"


def rank_sentence(report: DefenseReport) -> Html:
    """What would change the rank; empty without a rank or a neighbour."""
    if report.separation is None:
        return markup.NOTHING
    label = "What would change this rank" if report.separation.tied else "Nearest in the ranking"
    said = markup.tag("b", markup.text(f"{label}: "))
    return markup.tag("p", Html(said + markup.text(report.separation.sentence, 400)))


def confidence_table(drop: ConfidenceDrop | None) -> Html:
    """Quantiles of the fall of confidence, and the examples below the levels; may be empty."""
    if drop is None:
        return markup.NOTHING
    lines = [
        (f"{100 * level:g} % quantile", f"{100 * value:.1f} points")
        for level, value in drop.quantiles
    ]
    lines.append(("mean", f"{100 * drop.mean:.1f} points"))
    for level, count in drop.below:
        said = f"{words.format_count(count)} ({_k_of_n(count)})"
        lines.append((f"attacked confidence below {100 * level:g} %", said))
    columns = (Column("Fall of the true class's confidence", kind="name"), Column("", kind="right"))
    return markup.html_table(columns, [tuple(map(markup.text, line)) for line in lines])


def target_table(found: TargetedSuccess | None, classes: Sequence[str]) -> Html:
    """Source against target classes; the diagonal is empty. A list where there are many classes."""
    if found is None or not found.pairs:
        return markup.NOTHING
    if len(classes) > MATRIX_CLASSES:
        return _target_list(found.pairs, classes)
    known = {(pair.source, pair.target): pair for pair in found.pairs}
    absent = "—" if found.targeted else "0"  # not tried, or tried as every class is
    columns = (
        Column("True class"),
        *(Column(name, f"target class {name}", "right") for name in classes),
    )
    rows = [
        (
            markup.tag("b", markup.text(name)),
            *(
                _pair_cell(known.get((source, target)), "" if source == target else absent)
                for target in range(len(classes))
            ),
        )
        for source, name in enumerate(classes)
    ]  # fmt: skip
    return markup.html_table(columns, rows, words.target_caption(targeted=found.targeted))


def _pair_cell(pair: SourceTarget | None, absent: str) -> Html:
    if pair is None:
        return markup.small(absent)
    means = f"{pair.reached} of {pair.attempted}"
    return markup.tag("span", markup.text(pair.reached), title=means)


def _target_list(pairs: Sequence[SourceTarget], classes: Sequence[str]) -> Html:
    most = sorted(pairs, key=lambda pair: (-pair.reached, pair.source, pair.target))
    columns = (
        Column("True class", kind="name"), Column("Target class", kind="name"),
        Column("Reached", kind="right"), Column("Of", kind="right"),
    )  # fmt: skip
    rows = [
        tuple(map(markup.text, (classes[p.source], classes[p.target], p.reached, p.attempted)))
        for p in most[:LISTED_PAIRS]
    ]
    return markup.html_table(columns, rows, f"The most frequent {len(rows)} of {len(pairs)} pairs.")


def cost_table(costs: Sequence[AttackCost]) -> Html:
    """The cost of each attack per example, the dearest first."""
    columns = (
        Column("Attack", kind="name"), Column("Seconds", "CPU seconds per example", "right"),
        Column("Queries", "forward passes per example", "right"),
        Column("Gradients", "gradient evaluations per example", "right"),
    )  # fmt: skip
    rows = [
        (
            markup.tag("b", markup.text(cost.attack)),
            *map(
                markup.text, (f"{cost.seconds:.2g}", f"{cost.queries:.4g}", f"{cost.gradients:.4g}")
            ),
        )
        for cost in costs
    ]
    total = sum(cost.seconds for cost in costs)
    caption = f"Per example that the attack ran on; {total:.2g} s over all attacks."
    return markup.html_table(columns, rows, caption) if rows else markup.NOTHING


def measures_part(report: DefenseReport, classes: Sequence[str]) -> Html:
    """All measures below one another, for a page without columns."""
    found: Measures = report.measures
    return markup.join(
        (
            measure_tiles(report),
            rank_sentence(report),
            confidence_table(found.confidence),
            target_table(found.targets, classes),
            cost_table(found.costs),
        )
    )
