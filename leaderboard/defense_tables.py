"""Tables and images of one defense as HTML, from records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from bench.core.cards import AttackCard, DefenseCard
from bench.core.corruptions import SEVERITIES
from bench.core.outcomes import KeptImage
from bench.core.statistics import Count
from bench.results.corruption_rows import corruption_rows, mean_shares
from bench.results.matrix import MatrixCell
from bench.results.ranking import RankingRow
from leaderboard import markup, notices, words
from leaderboard.markup import Column, Html
from leaderboard.tables import CLAIM_KIND, attack_link, checks_cell, rank_cell, ranked_cell

Pixels: TypeAlias = npt.NDArray[Any]
"""An image [C, H, W]."""


def identity_list(card: DefenseCard) -> Html:
    """The declared properties of a defense."""
    draws = card.randomness
    pairs = [
        ("Origin", card.origin),
        ("Paper", card.cite or "none"),
        (
            "Randomness",
            f"declared; attacks average over {draws} draws" if draws else "none declared",
        ),
        ("BPDA approximation", "declared" if card.bpda else "none"),
        ("Rejects", _rejects(card.rejects)),
        ("Surrogate model", f"{card.surrogate or 'none'} (for transfer attacks)"),
    ]
    built = card.digests or {"": card.digest}
    digests = [
        (f"Digest {dataset}".strip(), markup.tag("code", markup.text(digest)))
        for dataset, digest in built.items()
    ]
    return markup.definition_list(
        [*((term, markup.text(value)) for term, value in pairs), *digests]
    )


def _rejects(share: float | None) -> str:
    return "nothing" if share is None else f"declares {100 * share:g} % of clean images"


def detector_table(
    row: RankingRow, cells: Sequence[MatrixCell], attacks: Mapping[str, AttackCard]
) -> Html:
    """Rejection rates of a detector on clean and attacked images; empty without a detector."""
    if row.rejects is None:
        return markup.NOTHING
    faced = {cell.attack for cell in cells if cell.detection}
    both = any(card.joint for name, card in attacks.items() if name in faced)
    columns = (
        Column("Images", kind="name"),
        Column("AUC ↑", "probability that an attacked image scores above a clean one", "right"),
        Column("Rejected", "at the threshold of the defense", "figure"),
        Column("Fooled ↓", "misclassified, rejected or not", "figure"),
        Column("Fooled and accepted ↓", "misclassified and not rejected", "figure"),
    )
    declared = Html(f"<b>clean</b>, {markup.text(_rejects(row.rejects.declared))}")
    none = markup.text("—")
    lines: list[tuple[Html, ...]] = [
        (declared, none, markup.bar(row.rejects.clean, "clean"), none, none)
    ]
    for cell in cells:
        if found := cell.detection:
            counts = (found.rejected, found.fooled, found.passed)
            name = markup.tag("b", markup.text(cell.attack))
            auc = markup.text(f"{found.auc:.3f}")
            lines.append((name, auc, *(markup.bar(count) for count in counts)))
    table = markup.html_table(columns, lines)
    return table if both else Html(markup.notice(notices.NO_JOINT_ATTACK) + table)


CLAIM_COLUMNS = (
    Column("Threat model", kind="name"), Column("Claimed", kind="right"),
    Column("Measured", "robust accuracy with its interval", "figure"),
    Column("Verdict"), Column("Source"),
)  # fmt: skip


def claims_table(card: DefenseCard, rows: Mapping[str, RankingRow]) -> Html:
    """Every claim of a defense compared with the measurement."""
    lines = []
    for claim in card.claims:
        row = rows.get(claim.threat)
        found = row.claim.verdict if row and row.claim else "not testable"
        lines.append(
            (
                markup.text(claim.threat),
                markup.text(f"{100 * claim.robust:.1f} %"),
                markup.bar(row.robust if row else None),
                markup.chip(words.CLAIM_LABELS[found], CLAIM_KIND[found]),
                markup.text(claim.cite or "—"),
            )
        )
    return markup.html_table(CLAIM_COLUMNS, lines) if lines else markup.notice(notices.NO_CLAIM)


THREAT_MODEL_COLUMNS = (
    Column("Threat model", kind="name"), Column("Rank", kind="rank"),
    Column("Robust accuracy ↑", kind="figure"), Column("Clean accuracy ↑", kind="figure"),
    Column("8-bit ↑", "robust where adversarial examples are rounded to k/255", "right"),
    Column("Strongest attack"), Column("Ranked figure"), Column("Checks"),
)  # fmt: skip


def threat_models_table(rows: Iterable[tuple[str, RankingRow]]) -> Html:
    """One defense under every threat model that it was evaluated under, with its label."""
    lines = [
        (
            markup.link("", markup.text(label), threat=label),
            rank_cell(row),
            markup.bar(row.robust),
            markup.bar(row.clean, "clean"),
            markup.text(words.format_count(row.robust_8bit)),
            attack_link(row.strongest, label),
            ranked_cell(row),
            checks_cell(row),
        )
        for label, row in rows
    ]
    return markup.html_table(THREAT_MODEL_COLUMNS, lines)


def corruptions_by_severity(clean: Count, cells: Iterable[MatrixCell]) -> Html:
    """The accuracy of one defense under each corruption, by severity; empty without a figure."""
    found = corruption_rows(clean, {cell.attack: cell.robust for cell in cells})
    lines = [
        (markup.text(row.kind), *(markup.bar(count, "clean") for count in row.counts))
        for row in found
    ]
    if not lines:
        return markup.NOTHING
    means = (
        markup.text("—" if share is None else f"{100 * share:.1f} %")
        for share in mean_shares(found)
    )
    severities = (
        Column(f"Severity {severity}" if severity else "Clean", kind="figure")
        for severity in range(SEVERITIES + 1)
    )
    columns = (Column("Corruption", kind="name"), *severities)
    return markup.html_table(columns, [*lines, (markup.tag("b", markup.text("mean")), *means)])


def example_pictures(
    kept: Iterable[KeptImage], classes: Sequence[str], points: Mapping[int, str] | None = None
) -> Html:
    """Clean image, adversarial example and magnified perturbation, with predictions.

    `points` are the points of a parametric set behind the images in words, by item.
    """
    known = points or {}
    drawn = (_picture(one, classes, known.get(one.item, "")) for one in kept)
    return markup.tag("div", markup.join(drawn), class_="g-pictures")


def _figure(item: int, pixels: Pixels, name: str, description: str, sure: float | None) -> Html:
    """One image with its caption; `sure` is the confidence of the prediction."""
    text = description if sure is None else f"{description}, {100 * sure:.0f} % confidence"
    caption = Html(f"<b>{markup.text(name)}</b><br>{markup.text(text)}")
    image = markup.picture(pixels, f"{name} of example {item}: {description}")
    return markup.tag("figure", Html(image + markup.tag("figcaption", caption)))


def _picture(kept: KeptImage, classes: Sequence[str], point: str) -> Html:
    change, factor = markup.magnified_perturbation(kept.original, kept.adversarial)
    truth, clean, predicted = (
        _class(classes, n) for n in (kept.true_label, kept.clean_label, kept.label)
    )
    largest = float(abs(markup.perturbation_of(kept.original, kept.adversarial)).max())
    enlarged = f"Perturbation \u00d7 {factor:.3g}" if largest else "No perturbation"
    around = f"around grey; largest {largest:.2g}" if largest else "only rounding noise"
    title = "Adversarial" if kept.label != kept.true_label else "Last candidate, not broken"
    triple = (
        (kept.original, "Clean", f"label {truth}; predicted {clean}", kept.clean_confidence),
        (kept.adversarial, title, f"predicted {predicted}", kept.confidence),
        (change, enlarged, around, None),
    )
    drawn = [_figure(kept.item, *parts) for parts in triple]
    named = f"example {kept.item}" + (f": {point}" if point else "")
    inside = Html(markup.small(named)
                  + markup.tag("div", markup.join(drawn), class_="g-triple"))  # fmt: skip
    return markup.tag("article", inside, class_="g-example")


def _class(classes: Sequence[str], label: int) -> str:
    return f"“{classes[label]}”" if 0 <= label < len(classes) else "no class (not finite)"
