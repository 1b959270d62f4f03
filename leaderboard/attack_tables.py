"""Tables of one attack as HTML, from records."""

from __future__ import annotations

from bench.core.cards import AttackCard
from bench.results.attack_report import AttackedDefense, AttackReport
from bench.results.leaderboards import Leaderboard
from leaderboard import markup, words
from leaderboard.markup import Column, Html
from leaderboard.tables import STATE_KIND, cell_link

STOP_RULES = {
    "first success": "at the first success",
    "convergence": "where its search has converged",
    "never": "after all steps",
}
"""Stop rule of a card -> the words for it."""


def attack_facts(card: AttackCard) -> Html:
    """What an attack declares: access, steps, norms, goals and parameters."""
    draws = f"{card.eot_draws} draws" if card.eot_draws else "as many draws as the defense declares"
    steps = "not declared" if card.steps is None else str(card.steps)
    pairs = [
        ("Origin", card.origin),
        ("Paper", card.cite or "none"),
        ("Access", words.access_sentence(card.needs)),
        ("Steps of one restart", steps),
        ("Stops", STOP_RULES.get(card.stop_rule, card.stop_rule)),
        ("Perturbation sets", ", ".join(card.norms) or "all"),
        ("Goals", ", ".join(card.goals) or "all"),
        ("Random defenses", f"each gradient averages {draws}"),
        ("Runs on", f"the first {card.examples} examples" if card.examples else "all examples"),
        ("Written for", ", ".join(card.written_for) or "no defense in particular"),
    ]
    shown = [(term, markup.text(value)) for term, value in pairs]
    if card.source:
        shown.append(("Surrogate model", markup.text(f"{card.source}: it queries that instead")))
    if card.parameters:
        values = ", ".join(f"{name} = {value}" for name, value in sorted(card.parameters.items()))
        shown.append(("Parameters", markup.reason(values)))
    shown.append(("Digest", markup.tag("code", markup.text(card.digest))))
    return markup.definition_list(shown)


def attack_tiles(report: AttackReport, leaderboard: Leaderboard) -> Html:
    """The main figures of an attack on a leaderboard."""
    seconds = sum(one.cell.seconds for one in report.defenses if one.cell.robust)
    items = sum(one.cell.items for one in report.defenses if one.cell.robust)
    each = f"{1000 * seconds / items:.2g} ms an example" if items else "no figure"
    values = [
        ("Evaluated", words.plural(report.done, "defense"), f"of {len(report.defenses)} planned"),
        ("Broken by it alone", str(report.broken_only_here), "examples over all defenses"),
        ("Cost", words.format_seconds(seconds), f"CPU time, {each}"),
        ("Required", "yes" if report.required else "no", "for a rank on this leaderboard"),
    ]
    if leaderboard.mode == "full":
        means = "where no attack breaks more examples"
        values.insert(1, ("Strongest on", words.plural(report.strongest_on, "defense"), means))
    return markup.figure_tiles(values)


def attack_table(report: AttackReport, leaderboard: Leaderboard, label: str) -> Html:
    """One line for each defense: what the attack broke, what only it broke, and its cost."""
    columns = (
        Column("Defense", kind="name"),
        Column("State"),
        Column("Robust accuracy ↑", "classified correctly and not broken by this attack",
               "figure"),
        Column("Broken", "of the examples that are right on the clean image", "right"),
        Column("Only by it", "broken by this attack and by no other one", "right"),
        Column("Gradients", "gradient evaluations over all examples", "right"),
        Column("Queries", "forward passes over all examples", "right"),
        Column("Time", "CPU seconds", "right"),
        Column("Refused", "candidates that the referee refused, by reason", "right"),
        Column("Reason", "why there is no figure", "words"),
    )  # fmt: skip
    rows = [_line(one, label) for one in report.defenses]
    return markup.html_table(columns, rows) if rows else markup.NOTHING


def _line(one: AttackedDefense, label: str) -> tuple[Html, ...]:
    cell, is_done = one.cell, one.cell.robust is not None
    chips = [markup.chip("strongest", "good", "no attack breaks more")] if one.is_strongest else []
    link = markup.link("defense", markup.text(cell.defense), name=cell.defense, threat=label)
    state = markup.chip(cell.state, STATE_KIND.get(cell.state, "quiet"),
                        words.STATE_EXPLANATIONS[cell.state])  # fmt: skip
    counts = (words.grouped(cell.gradients), words.grouped(cell.forwards))
    return (
        markup.join((link, *chips), " "),
        cell_link(cell, state),
        markup.bar(cell.robust),
        markup.text(f"{one.broken}/{one.right}" if is_done else "—"),
        markup.text(len(one.only_here) if is_done else "—"),
        *map(markup.text, counts),
        markup.text(words.format_seconds(cell.seconds) if is_done else "—"),
        markup.text(words.refused(cell.refusals)),
        markup.reason(cell.reason or "—"),
    )
