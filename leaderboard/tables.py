"""Tables of a leaderboard as HTML, from records; no widgets, no database."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from bench.core.cards import DefenseCard
from bench.core.cells import FAST
from bench.results.cell_report import SHORT_KEY
from bench.results.disputes import Dispute
from bench.results.follow_ups import FollowUp
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import NOT_TESTED, PASSED, WARNING, MaskingCheck
from bench.results.matrix import MatrixCell
from bench.results.ranking import ClaimCheck, RankingRow
from bench.results.version_notes import apart_sentence
from leaderboard import markup, words
from leaderboard.markup import Column, Html

VERDICT_KIND = {"sound": "good", "suspect": "warn", "invalid": "bad", "": "quiet"}
CLAIM_KIND = {"holds": "good", "below": "bad", "not testable": "quiet"}
CHECK_KIND = {WARNING: "warn", PASSED: "good", NOT_TESTED: "quiet"}
STATE_KIND = {"done": "good", "failed": "bad", "running": "warn"}


def rules_list(leaderboard: Leaderboard) -> Html:
    """The rules of a leaderboard's threat model."""
    required = markup.join(markup.chip(name) for name in leaderboard.required)
    notation = f"{leaderboard.set['name']}, eps = {leaderboard.set['eps']}"
    pairs = [
        ("Name", markup.tag("b", markup.text(leaderboard.name))),
        ("Summary", markup.text(leaderboard.summary or "none")),
        (
            "Data",
            markup.text(
                f"{leaderboard.dataset}, the first {leaderboard.n} images "
                f"{words.ORDER_WORDS[leaderboard.example_order]}"
            ),
        ),
        ("Perturbation set", markup.text(words.perturbation_sentence(leaderboard.set))),
        ("Notation", markup.text(notation)),
        ("Attacker knowledge", markup.text(words.access_sentence(leaderboard.access))),
        ("Attacker goal", markup.text(words.goal_sentence(leaderboard.goal))),
        ("Query budget", markup.text(words.budget_sentence(leaderboard.budget))),
        ("Required attacks", required or markup.text("none")),
        (
            "Ranked",
            markup.text("yes" if leaderboard.ranked else "no: this leaderboard is evidence only"),
        ),
        ("Mode", markup.text(words.MODE_SENTENCES.get(leaderboard.mode, leaderboard.mode))),
        ("Id", markup.tag("code", markup.text(leaderboard.id))),
        ("Examples", markup.tag("code", markup.text(leaderboard.examples))),
    ]
    return markup.definition_list(pairs)


def leaderboard_summary(leaderboard: Leaderboard, label: str) -> Html:
    """The rules of a leaderboard in one line, with a link to all of them."""
    access = words.access_sentence(leaderboard.access).partition(":")[0]
    summary = (
        f"{words.perturbation_sentence(leaderboard.set)} {access}, {leaderboard.goal['kind']}."
        f" {leaderboard.n} images of {leaderboard.dataset}. {leaderboard.summary}"
    )
    more = markup.link("rules", markup.text("All rules"), threat=label)
    return Html(f"{markup.text(summary)} {more}")


def mode_note(leaderboard: Leaderboard) -> Html:
    """An explanation of rank mode and of the suite fast; empty in full mode."""
    if leaderboard.mode == "full":
        return markup.NOTHING
    lines = words.FAST_MODE if leaderboard.mode == FAST else words.RANK_MODE
    return markup.tag("p", markup.join(map(markup.text, lines), " "), class_="g-mode")


def lead(rows: Sequence[RankingRow], leaderboard: Leaderboard, newest: float | None) -> Html:
    """Who is first and how sure that is, how many rows have a rank, and the day of the results.

    `newest` is the Unix time of the newest result.
    """
    ranked = [row for row in rows if row.rank]
    first = markup.text("No row has a rank yet.")
    if ranked:
        best, tied = ranked[0], 1 + ranked[0].tied
        name = markup.tag("b", markup.text(best.defense))
        figure = markup.text(words.figure_with_interval(best.robust_ranked))
        others = words.plural(tied - 1, "other row")
        told = "tied with no other row" if tied == 1 else f"tied with {others}"
        if len(ranked) == 1:
            told = "the only ranked row"
        first = Html(f"{name} is first with {figure}, {markup.text(told)}.")
    counts = [f"{len(ranked)} of {words.plural(len(rows), 'defense')} ranked"]
    suspect = sum(row.verdict in ("suspect", "invalid") for row in rows)
    below = sum(row.claim is not None and row.claim.verdict == "below" for row in rows)
    counts += [f"{suspect} suspect or invalid"] if suspect else []
    counts += [f"{words.plural(below, 'claim')} not reached"] if below else []
    counts += [
        f"{leaderboard.n} images",
        f"{words.plural(len(leaderboard.required), 'required attack')}",
        f"newest result {words.day(newest)}",
        f"{words.PRODUCT} {words.PRODUCT_VERSION}",
    ]
    facts = markup.text(" · ".join(counts))
    return markup.tag("p", Html(f"{first} {markup.tag('span', facts, class_='g-small')}"),
                      class_="g-lead")  # fmt: skip


def rank_cell(row: RankingRow) -> Html:
    """The rank or range of ranks, and the tie group where there is one."""
    rank = row.rank
    if rank is None:
        kind = "provisional" if row.provisional else "low n" if row.low_n else "unranked"
        return markup.chip(kind, "quiet", row.note)
    ranks = markup.text(words.rank_range(rank.best, rank.worst))
    if not row.tied:
        return ranks
    group = markup.tag("span", markup.text(f"tie {rank.group}"), class_="g-group",
                       title="no significant difference on these examples")  # fmt: skip
    return Html(ranks + group)


def attack_link(attack: str | None, threat: str) -> Html:
    """The name of an attack with a link to its page; a dash where there is none."""
    if attack is None:
        return markup.text("—")
    return markup.link("attack", markup.text(attack), attack=attack, threat=threat)


def required_done(row: RankingRow) -> str:
    """How many required attacks are done, and how many others: `3/3 + 2`."""
    further = f" + {row.further}" if row.further else ""
    return f"{row.coverage.done}/{row.coverage.required}{further}"


def defense_cell(
    row: RankingRow, card: DefenseCard | None, threat: str, is_disputed: bool = False
) -> Html:
    """The name of a defense, its declared properties, and the isolation of its code."""
    chips = [markup.chip("baseline", "quiet")] if row.defense == words.BASELINE else []
    if card is not None:
        chips += [
            markup.chip(label, "plain", why)
            for field, (label, why) in words.DEFENSE_TAGS.items()
            if getattr(card, field)
        ]
        if card.origin != "built-in":
            chips.append(markup.chip(card.origin))
    if not row.adaptive:
        chips.append(markup.chip("no attack written for it", "quiet", words.NOT_ADAPTIVE))
    if is_disputed:
        chips.append(markup.chip("⚑ disputed", "warn", "see the dispute below the table"))
    if row.versions and row.versions.older:
        chips.append(markup.chip("older version", "warn", " ".join(row.versions.sentences)))
    if row.tier not in ("", "in-process"):
        chips.append(markup.chip(row.tier, "plain", words.ISOLATION_NOTES.get(row.tier)))
    link = markup.link("defense", markup.text(row.defense), name=row.defense, threat=threat)
    return markup.join((link, Html("<br>"), *chips)) if chips else link


def checks_cell(row: RankingRow) -> Html:
    """The verdict on a row, and its gradient-masking checks by state."""
    counts = {state: sum(check.state == state for check in row.flags) for state in CHECK_KIND}
    warned = words.plural(counts.pop(WARNING), words.CHECK_NAMES[WARNING])
    answered = sum(one.answered for one in row.follow_ups)
    warned += f", {answered} answered" if row.follow_ups else ""
    others = (f"{count} {words.CHECK_NAMES[state]}" for state, count in counts.items())
    summary = " · ".join((warned, *others))
    warnings = ", ".join(check.name for check in row.flags if check.state == WARNING)
    label, kind = words.VERDICT_LABELS[row.verdict], VERDICT_KIND[row.verdict]
    chip = markup.chip(label, kind, warnings or None)
    return markup.join(
        (chip, Html("<br>"), markup.tag("span", markup.small(summary), class_="g-line"))
    )


def ranked_cell(row: RankingRow) -> Html:
    """The ranked figure; below it the figure of the required attacks alone, and how many are done.

    The two differ by what the follow-up attacks of the row's warnings broke.
    """
    plain = f"{words.format_count(row.robust_required)} before follow-ups"
    lines = [markup.text(words.format_count(row.robust_ranked))]
    lines += [markup.small(plain)] if row.follow_ups else []
    lines += [markup.small(f"fast: {row.audit.sentence}")] if row.audit else []
    return markup.join((*lines, markup.small(f"{required_done(row)} attacks")), "<br>")


def claim_cell(found: ClaimCheck | None) -> Html:
    """The authors' claim compared with the measurement."""
    if found is None:
        return markup.small("no claim")
    chip = markup.chip(words.CLAIM_LABELS[found.verdict], CLAIM_KIND[found.verdict], found.sentence)
    return markup.join((chip, Html("<br>"), markup.small(f"claims {100 * found.robust:.1f} %")))


def disputes_list(found: Iterable[Dispute]) -> Html:
    """Disputes with date, author, text and answer; empty without one."""
    lines = [
        markup.tag("li", Html(f"<b>⚑ {markup.text(one.defense)}</b>, disputed: "
                              f"{markup.text(one.sentence, 2400)}"))
        for one in found
    ]  # fmt: skip
    return markup.tag("ul", markup.join(lines), class_="g-list") if lines else markup.NOTHING


def ranking_table(
    rows: Sequence[RankingRow], cards: Mapping[str, DefenseCard], threat: str,
    disputed: Collection[str] = (),
) -> Html:  # fmt: skip
    """The ranking: rank, accuracies with intervals, checks and claims of every defense.

    `disputed` are the defenses with an open dispute.
    """
    has_certificates = any(row.certified and row.certified.count.k for row in rows)
    has_claims = any(row.claim for row in rows)
    certificates = Column(
        "Certified ↑", "examples with a certificate: no attack can break them", "figure"
    )
    claims = Column("Claim", "the authors' claim compared with the measured interval")
    columns = [
        Column("Rank", "range of ranks that the paired tests allow, and the tie group", "rank"),
        Column("Defense", kind="name"),
        Column("Robust accuracy ↑", "classified correctly, and not broken by any attack",
               "figure"),
        Column("Clean accuracy ↑", "classified correctly without an attack", "figure"),
        Column("Strongest attack", "the attack with the lowest accuracy"),
        Column("Ranked figure ↑", "accuracy under the required attacks and the follow-up attacks"
               " that the row's warnings call for, which decides the rank; below it, under the"
               " required attacks alone, and how many attacks are done"),
        *([certificates] if has_certificates else []),
        Column("Checks", "gradient-masking checks: warning, passed, not tested"),
        *([claims] if has_claims else []),
    ]  # fmt: skip
    lines = []
    for row in rows:
        lines.append(
            [
                rank_cell(row),
                defense_cell(row, cards.get(row.defense), threat, row.defense in disputed),
                markup.bar(row.robust),
                markup.bar(row.clean, "clean"),
                attack_link(row.strongest, threat),
                ranked_cell(row),
                *([certified_cell(row)] if has_certificates else []),
                checks_cell(row),
                *([claim_cell(row.claim)] if has_claims else []),
            ]
        )
    return markup.html_table(columns, lines, kind="cards")


def certified_cell(row: RankingRow) -> Html:
    """The largest certified accuracy, and its certifier."""
    if row.certified is None:
        return markup.bar(None)
    drawn = (markup.bar(row.certified.count, "certified"), words.certificate_note(row.certified))
    return markup.join((drawn[0], markup.small(drawn[1])), "<br>")


def unranked_list(rows: Sequence[RankingRow]) -> Html:
    """The notes on rows: why one has no rank, and which versions of code it shows."""
    noted = [
        (row.defense, note) for row in rows for note in (row.note, *version_sentences(row)) if note
    ]
    lines = [Html(f"<b>{markup.text(name)}</b>: {markup.reason(note)}") for name, note in noted]
    if apart := apart_sentence({row.defense: row.apart for row in rows}):
        lines.append(markup.reason(apart))
    items = markup.join(markup.tag("li", line) for line in lines)
    return markup.tag("ul", items, class_="g-list") if lines else markup.NOTHING


def version_sentences(row: RankingRow) -> tuple[str, ...]:
    """What a row states about versions of code; empty where the database has one version of it."""
    return row.versions.sentences if row.versions else ()


def version_note(row: RankingRow) -> Html:
    """The same as a paragraph of the page of a defense; empty where there is nothing to state."""
    lines = [markup.reason(sentence) for sentence in version_sentences(row)]
    return markup.tag("p", markup.join(lines, " "), class_="g-mode") if lines else markup.NOTHING


def checks_table(checks: Sequence[MaskingCheck], follow_ups: Sequence[FollowUp]) -> Html:
    """Every gradient-masking check of a row with its evidence and follow-ups; warnings first."""
    order = list(words.CHECK_STATES)
    later = {one.check: one for one in follow_ups}
    lines = [
        (
            markup.tag("b", markup.text(check.name)),
            markup.chip(words.CHECK_STATES[check.state], CHECK_KIND[check.state]),
            markup.reason(check.evidence),
            follow_up_cell(later.get(check.name)),
        )
        for check in sorted(checks, key=lambda check: order.index(check.state))
    ]
    columns = (
        Column("Check", kind="name"), Column("State"), Column("Evidence", kind="words"),
        Column("Follow-up attacks", "attacks that a warning calls for, and whether they answer it",
               "words"),
    )  # fmt: skip
    return markup.html_table(columns, lines)


def follow_up_cell(found: FollowUp | None) -> Html:
    """Whether the follow-up attacks of a warning answer it, and what they broke."""
    if found is None:
        return markup.text("—")
    chip = markup.chip("answered", "good") if found.answered else markup.chip("open", "warn")
    return markup.join((chip, markup.reason(found.sentence)), " ")


def cell_link(cell: MatrixCell, label: Html) -> Html:
    """A label with a link to the page of each cell behind a figure; without one where none is."""
    if not cell.keys:
        return label
    first, *others = (key[:SHORT_KEY] for key in cell.keys)
    links = [markup.link("cell", label, key=first)]
    links += [markup.link("cell", markup.text(f"+{n}"), key=k) for n, k in enumerate(others, 1)]
    return markup.join(links, " ")


def cells_table(
    found: Sequence[tuple[str, MatrixCell]], first: str, leaderboard: Leaderboard
) -> Html:
    """Cells as a table: `first` is the heading of the first column, whose texts are in `found`."""
    figure = (
        Column("Robust of the examples met ↑", "of those that no earlier attack broke", "figure")
        if leaderboard.mode != "full"
        else Column("Robust accuracy ↑", "classified correctly and not broken", "figure")
    )
    columns = (
        Column(first, kind="name"), Column("State"), figure,
        Column("Gradients", "gradient evaluations over all examples", "right"),
        Column("Queries", "forward passes over all examples", "right"),
        Column("Time", "CPU seconds", "right"),
        Column("Refused", "candidates that the referee refused, by reason", "right"),
        Column("Fragile", "broken with a margin under 1e-4 of the logit scale", "right"),
        Column("Machine, or reason", "the machine class and what evaluating the cell again showed, "
               "or why there is no figure", "words"),
    )  # fmt: skip
    lines = [
        (
            markup.tag("b", markup.text(label)),
            cell_link(cell, markup.chip(cell.state, STATE_KIND.get(cell.state, "quiet"),
                                        words.STATE_EXPLANATIONS[cell.state])),
            markup.bar(cell.robust),
            *(markup.text(words.grouped(value)) for value in (cell.gradients, cell.forwards)),
            markup.text(words.format_seconds(cell.seconds) if cell.state == "done" else "—"),
            markup.text(words.refused(cell.refusals)),
            markup.text("—" if cell.fragile is None else cell.fragile),
            markup.reason(cell.reason or words.provenance(cell)),
        )
        for label, cell in found
    ]  # fmt: skip
    return markup.html_table(columns, lines)


def attack_warning_list(warnings: Mapping[str, str]) -> Html:
    """The attacks whose results depend on their batch; empty without one."""
    lines = [
        markup.tag("li", Html(f"<b>▲ {markup.text(name)}</b>: {markup.reason(sentence)}"))
        for name, sentence in warnings.items()
    ]
    return markup.tag("ul", markup.join(lines), class_="g-list") if lines else markup.NOTHING


def state_legend(found: Iterable[MatrixCell]) -> Html:
    """The states of the cells: how often each occurs, and what it means."""
    cells = list(found)
    counts = {state: sum(s.state == state for s in cells) for state in words.STATE_LABELS}
    parts = [
        markup.join((
            markup.chip(f"{words.STATE_LABELS[state]} {count}", STATE_KIND.get(state, "quiet")),
            markup.small(words.STATE_EXPLANATIONS[state]),
        ))
        for state, count in counts.items()
        if count
    ]  # fmt: skip
    return markup.tag(
        "p", markup.join(markup.tag("span", part) for part in parts), class_="g-legend"
    )
