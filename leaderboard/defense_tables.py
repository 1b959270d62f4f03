"""One defense as tables and pictures: records in, HTML out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.core.cards import AttackCard, DefenseCard
from bench.core.outcomes import KeptImage
from bench.results.matrix import MatrixCell
from bench.results.ranking import RankingRow
from leaderboard import markup, words
from leaderboard.markup import Column, Html
from leaderboard.tables import CLAIM_KIND, checks_cell, rank_cell, required_done


def identity_list(card: DefenseCard) -> Html:
    """What a defense is, by its card."""
    draws = card.randomness
    pairs = [
        ("Origin", card.origin),
        ("Paper", card.cite or "none named"),
        (
            "Randomness",
            f"declared; attacks average over {draws} draws" if draws else "none declared",
        ),
        ("Stand-in", "declares one for the gradient" if card.bpda else "none"),
        ("Rejects", _rejects(card.rejects)),
        ("Twin", f"{card.surrogate or 'none'} (asked by transfer attacks)"),
    ]
    built = card.digests or {"": card.digest}
    digests = [
        (f"Digest {dataset}".strip(), markup.tag("code", markup.text(digest)))
        for dataset, digest in built.items()
    ]
    return markup.definition_list([*((term, markup.text(said)) for term, said in pairs), *digests])


def _rejects(share: float | None) -> str:
    return "nothing" if share is None else f"declares {100 * share:g} % of clean images"


def detector_table(row: RankingRow, squares: Sequence[MatrixCell], attacks: Mapping[str, AttackCard]) -> Html:
    """What a detector does to clean images and to what each attack brought; nothing without one."""
    if row.rejects is None:
        return markup.NOTHING
    faced = {square.attack for square in squares if square.detection}
    both = any(card.joint for name, card in attacks.items() if name in faced)
    columns = (
        Column("Images", kind="name"),
        Column("AUC ↑", "chance that an attacked image scores above a clean one", "right"),
        Column("Rejected", "at the threshold that the defense has", "figure"),
        Column("Fooled ↓", "another class named, rejected or not", "figure"),
        Column("Fooled and accepted ↓", "got past classifier and detector", "figure"),
    )
    declared = Html(f"<b>clean</b>, {markup.text(_rejects(row.rejects.declared))}")
    none = markup.text("—")
    lines: list[tuple[Html, ...]] = [
        (declared, none, markup.bar(row.rejects.clean, "clean"), none, none)
    ]
    for square in squares:
        if found := square.detection:
            counts = (found.rejected, found.fooled, found.passed)
            name = markup.tag("b", markup.text(square.attack))
            auc = markup.text(f"{found.auc:.3f}")
            lines.append((name, auc, *(markup.bar(count) for count in counts)))
    table = markup.html_table(columns, lines)
    return table if both else Html(markup.notice(words.NO_JOINT_ATTACK) + table)


def claims_table(card: DefenseCard, rows: Mapping[str, RankingRow]) -> Html:
    """Every claim of a defense beside what was measured."""
    columns = (
        Column("Threat model", kind="name"), Column("Claimed", kind="right"),
        Column("Measured", "robust accuracy with its interval", "figure"),
        Column("Verdict"), Column("Source"),
    )  # fmt: skip
    lines = []
    for said in card.claims:
        row = rows.get(said.threat)
        found = row.claim.verdict if row and row.claim else "not testable"
        lines.append(
            (
                markup.text(said.threat),
                markup.text(f"{100 * said.robust:.1f} %"),
                markup.bar(row.robust if row else None),
                markup.chip(words.CLAIM_LABELS[found], CLAIM_KIND[found]),
                markup.text(said.cite or "—"),
            )
        )
    return markup.html_table(columns, lines) if lines else markup.notice(words.NO_CLAIM)


def threat_models_table(rows: Iterable[tuple[str, RankingRow]]) -> Html:
    """One defense on every board where it was played, under the board's label."""
    columns = (
        Column("Threat model", kind="name"), Column("Rank", kind="rank"),
        Column("Robust accuracy ↑", kind="figure"), Column("Clean accuracy ↑", kind="figure"),
        Column("8-bit ↑", "broken only by images that survive rounding to k/255", "right"),
        Column("Strongest attack"), Column("Required"), Column("Signs"),
    )  # fmt: skip
    lines = [
        (
            markup.link("", markup.text(label), threat=label),
            rank_cell(row),
            markup.bar(row.robust),
            markup.bar(row.clean, "clean"),
            markup.text(words.format_count(row.robust_8bit)),
            markup.text(row.strongest or "—"),
            markup.text(required_done(row)),
            checks_cell(row),
        )
        for label, row in rows
    ]
    return markup.html_table(columns, lines)


def example_pictures(kept: Iterable[KeptImage], classes: Sequence[str]) -> Html:
    """Original, adversarial and magnified change, with labels and confidences."""
    return markup.tag("div", markup.join(_picture(k, classes) for k in kept), class_="g-pictures")


def _picture(kept: KeptImage, classes: Sequence[str]) -> Html:
    change, factor = markup.magnified_perturbation(kept.original, kept.adversarial)
    truth, clean, fooled = (
        _class(classes, n) for n in (kept.true_label, kept.clean_label, kept.label)
    )
    largest = float(abs(markup.perturbation_of(kept.original, kept.adversarial)).max())
    enlarged = f"Change \u00d7 {factor:.3g}" if largest else "No change"
    around = f"around grey; largest {largest:.2g}" if largest else "nothing beyond rounding"
    triple = (
        (kept.original, "Original", f"it is {truth}; answered {clean}", kept.clean_confidence),
        (kept.adversarial, "Adversarial", f"answered {fooled}", kept.confidence),
        (change, enlarged, around, None),
    )
    drawn = []
    for pixels, title, said, sure in triple:
        confidence = "" if sure is None else f", {100 * sure:.0f} % sure"
        caption = Html(f"<b>{markup.text(title)}</b><br>{markup.text(said + confidence)}")
        image = markup.picture(pixels, f"{title} of example {kept.item}: {said}")
        drawn.append(markup.tag("figure", Html(image + markup.tag("figcaption", caption))))
    inside = Html(markup.small(f"example {kept.item}")
                  + markup.tag("div", markup.join(drawn), class_="g-triple"))  # fmt: skip
    return markup.tag("article", inside, class_="g-example")


def _class(classes: Sequence[str], label: int) -> str:
    return f"“{classes[label]}”" if 0 <= label < len(classes) else "nothing finite"
