"""The board as tables: records in, HTML out; no widgets, no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.core.cards import DefenseCard
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import MaskingCheck
from bench.results.matrix import MatrixCell
from bench.results.ranking import ClaimCheck, RankingRow
from leaderboard import markup, words
from leaderboard.markup import Column, Html

VERDICT_KIND = {"sound": "good", "suspect": "warn", "invalid": "bad"}
CLAIM_KIND = {"holds": "good", "below": "bad", "not testable": "quiet"}
CHECK_KIND = {"raised": "warn", "clear": "good", "not tested": "quiet"}
STATE_KIND = {"done": "good", "failed": "bad", "running": "warn"}


def rules_list(board: Leaderboard) -> Html:
    """What exactly is allowed on a board."""
    required = markup.join(markup.chip(name) for name in board.required)
    notation = f"{board.set['name']}, eps = {board.set['eps']}"
    pairs = [
        ("Name", markup.tag("b", markup.text(board.name))),
        ("In short", markup.text(board.summary or "no summary")),
        ("Data", markup.text(f"{board.dataset}, the first {board.n} images of its fixed list")),
        ("May change", markup.text(words.perturbation_sentence(board.set))),
        ("In symbols", markup.text(notation)),
        ("Knows", markup.text(words.access_sentence(board.access))),
        ("Wants", markup.text(words.goal_sentence(board.goal))),
        ("May spend", markup.text(words.budget_sentence(board.budget))),
        ("Required attacks", required or markup.text("none")),
        ("Ranked", markup.text("yes" if board.ranked else "no: this board is evidence only")),
        ("Mode", markup.text(words.MODE_SENTENCES.get(board.mode, board.mode))),
        ("Id", markup.tag("code", markup.text(board.id))),
        ("Examples", markup.tag("code", markup.text(board.examples))),
    ]
    return markup.definition_list(pairs)


def leaderboard_summary(board: Leaderboard, label: str) -> Html:
    """A board in one line."""
    access = words.access_sentence(board.access).partition(":")[0]
    said = (
        f"{words.perturbation_sentence(board.set)} {access}, {board.goal['kind']}."
        f" {board.n} images of {board.dataset}. {board.summary}"
    )
    more = markup.link("rules", markup.text("All rules"), threat=label)
    return Html(f"{markup.text(said)} {more}")


def mode_note(board: Leaderboard) -> Html:
    """What must be known of a board whose cells are no whole ones."""
    if board.mode != "rank":
        return markup.NOTHING
    return markup.tag("p", markup.join(map(markup.text, words.RANK_MODE), " "), class_="g-mode")


def headline_tiles(rows: Sequence[RankingRow], board: Leaderboard) -> Html:
    """What a reader wants first: the leader, the tie, and how much is believable."""
    ranked = [row for row in rows if row.rank]
    values = []
    if ranked:
        first, tied = ranked[0], 1 + ranked[0].tied
        means = f"alone in front: {first.defense}" if tied == 1 else f"{tied} tied in front"
        figure = words.format_count(first.robust_required)
        values.append(("Highest against the required attacks", figure, means))
    suspect = sum(row.verdict != "sound" for row in rows)
    below = sum(row.claim is not None and row.claim.verdict == "below" for row in rows)
    claimed = sum(row.claim is not None for row in rows)
    values += [
        ("Ranked", f"{len(ranked)} of {len(rows)}", "the others are named with the reason below"),
        ("Suspect or invalid", str(suspect), "rows with a raised sign"),
        ("Claims not reached", f"{below} of {claimed}", "the interval lies below the claim"),
        ("Required attacks", str(len(board.required)), ", ".join(board.required) or "none"),
    ]
    return markup.figure_tiles(values)


def rank_cell(row: RankingRow) -> Html:
    """The range of places, and the group of those it is tied with, if it is tied with any."""
    rank = row.rank
    if rank is None:
        kind = "provisional" if row.provisional else "low n" if row.low_n else "unranked"
        return markup.chip(kind, "quiet", row.note)
    said = markup.text(words.rank_range(rank.best, rank.worst))
    if not row.tied:
        return said
    group = markup.tag("span", markup.text(f"tie {rank.group}"), class_="g-group",
                       title="these examples cannot tell its members apart")  # fmt: skip
    return Html(said + group)


def required_done(row: RankingRow) -> str:
    """How many of the required attacks are done, and how many others."""
    further = f" + {row.further}" if row.further else ""
    return f"{row.coverage.done}/{row.coverage.required}{further}"


def defense_cell(row: RankingRow, card: DefenseCard | None, threat: str) -> Html:
    """The defense, what it is, and how far its code was locked in."""
    chips = [markup.chip("baseline", "quiet")] if row.defense == words.BASELINE else []
    if card is not None:
        chips += [
            markup.chip(label, "plain", why)
            for field, (label, why) in words.DEFENSE_TAGS.items()
            if getattr(card, field)
        ]
        if card.origin != "built-in":
            chips.append(markup.chip(card.origin))
    if row.tier not in ("", "in-process"):
        chips.append(markup.chip(row.tier, "plain", words.ISOLATION_NOTES.get(row.tier)))
    link = markup.link("defense", markup.text(row.defense), name=row.defense, threat=threat)
    return markup.join((link, Html("<br>"), *chips)) if chips else link


def checks_cell(row: RankingRow) -> Html:
    """The verdict on the row, and how many signs were raised, clear and not tested."""
    counts = (sum(flag.state == state for flag in row.flags) for state in words.CHECK_STATES)
    said = " · ".join(
        f"{count} {state}" for count, state in zip(counts, words.CHECK_STATES, strict=True)
    )
    raised = ", ".join(flag.name for flag in row.flags if flag.state == "raised")
    chip = markup.chip(words.VERDICT_LABELS[row.verdict], VERDICT_KIND[row.verdict], raised or None)
    return markup.join(
        (chip, Html("<br>"), markup.tag("span", markup.small(said), class_="g-line"))
    )


def claim_cell(found: ClaimCheck | None) -> Html:
    """What the authors say beside what was measured."""
    if found is None:
        return markup.small("no claim")
    chip = markup.chip(words.CLAIM_LABELS[found.verdict], CLAIM_KIND[found.verdict], found.sentence)
    return markup.join((chip, Html("<br>"), markup.small(f"claims {100 * found.robust:.1f} %")))


def ranking_table(rows: Sequence[RankingRow], cards: Mapping[str, DefenseCard], threat: str) -> Html:
    """The board: place, figures with their intervals, and why to believe them."""
    proven = any(row.certified for row in rows)
    columns = [
        Column("Rank", "range of places these examples allow, and the tie group", "rank"),
        Column("Defense", kind="name"),
        Column("Robust accuracy ↑", "right, and broken by no verified attempt of any attack",
               "figure"),
        Column("Clean accuracy ↑", "right without an attack", "figure"),
        Column("Strongest attack", "the attack that leaves the fewest examples right"),
        Column("Required", "required attacks that are done, and others; the figure over the"
               " required ones alone, by which rows are ranked"),
        *([Column("Certified ↑", "proved: no attack can break these", "figure")] if proven else []),
        Column("Signs", "of masked gradients and of cheating: raised, clear, not tested"),
        Column("Claim", "the authors' figure beside the measured interval"),
    ]  # fmt: skip
    lines = []
    for row in rows:
        required = (markup.text(required_done(row)), markup.small(words.format_count(row.robust_required)))
        lines.append(
            [
                rank_cell(row),
                defense_cell(row, cards.get(row.defense), threat),
                markup.bar(row.robust),
                markup.bar(row.clean, "clean"),
                markup.text(row.strongest or "—"),
                markup.join(required, "<br>"),
                *([certified_cell(row)] if proven else []),
                checks_cell(row),
                claim_cell(row.claim),
            ]
        )
    return markup.html_table(columns, lines)


def certified_cell(row: RankingRow) -> Html:
    """The most that any certifier proved, and who did."""
    if row.certified is None:
        return markup.bar(None)
    drawn = (markup.bar(row.certified.count, "certified"), words.certificate_note(row.certified))
    return markup.join((drawn[0], markup.small(drawn[1])), "<br>")


def unranked_list(rows: Iterable[RankingRow]) -> Html:
    """Why a row has no rank."""
    told = [row for row in rows if row.note]
    lines = [markup.tag("li", Html(f"<b>{markup.text(r.defense)}</b>: {markup.reason(r.note)}"))
             for r in told]  # fmt: skip
    return markup.tag("ul", markup.join(lines), class_="g-list") if lines else markup.NOTHING


def checks_table(found: Sequence[MaskingCheck]) -> Html:
    """Every sign with its state and the numbers behind it; raised ones first."""
    order = list(words.CHECK_STATES)
    lines = [
        (
            markup.tag("b", markup.text(flag.name)),
            markup.chip(words.CHECK_STATES[flag.state], CHECK_KIND[flag.state]),
            markup.reason(flag.evidence),
        )
        for flag in sorted(found, key=lambda flag: order.index(flag.state))
    ]
    columns = (Column("Sign", kind="name"), Column("State"), Column("Evidence", kind="words"))
    return markup.html_table(columns, lines)


def cells_table(found: Sequence[tuple[str, MatrixCell]], first: str, board: Leaderboard) -> Html:
    """Cells as a table: `first` heads the leading column, whose words come with each cell."""
    figure = (
        Column("Right of the survivors met ↑", "of those that no earlier attack broke", "figure")
        if board.mode == "rank"
        else Column("Robust accuracy ↑", "right on the clean image and not broken", "figure")
    )
    columns = (
        Column(first, kind="name"), Column("State"), figure,
        Column("Gradients", "asked for, over all examples", "right"),
        Column("Forwards", "asked for, over all examples", "right"),
        Column("Time", "CPU seconds", "right"),
        Column("Refused", "offers outside ball or box", "right"),
        Column("Fragile", "broken by a hair's margin", "right"),
        Column("Reason", kind="words"),
    )  # fmt: skip
    lines = [
        (
            markup.tag("b", markup.text(label)),
            markup.chip(square.state, STATE_KIND.get(square.state, "quiet"),
                        words.STATE_EXPLANATIONS[square.state]),
            markup.bar(square.robust),
            *(markup.text("—" if value is None else f"{value:,}".replace(",", " "))
              for value in (square.gradients, square.forwards)),
            markup.text(words.format_seconds(square.seconds) if square.state == "done" else "—"),
            *(markup.text("—" if value is None else value)
              for value in (square.out_of_ball, square.fragile)),
            markup.reason(square.reason or "—"),
        )
        for label, square in found
    ]  # fmt: skip
    return markup.html_table(columns, lines)


def state_legend(found: Iterable[MatrixCell]) -> Html:
    """The states that occur, how often, and what they mean."""
    squares = list(found)
    counts = {state: sum(s.state == state for s in squares) for state in words.STATE_LABELS}
    parts = [
        markup.join((markup.chip(f"{words.STATE_LABELS[state]} {count}", STATE_KIND.get(state, "quiet")),
                     markup.small(words.STATE_EXPLANATIONS[state])))
        for state, count in counts.items()
        if count
    ]  # fmt: skip
    return markup.tag(
        "p", markup.join(markup.tag("span", part) for part in parts), class_="g-legend"
    )
