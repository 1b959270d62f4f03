"""Tables of one cell as HTML, from its report."""

from __future__ import annotations

from bench.core.cells import CLEAN
from bench.results.cell_report import CellReport
from leaderboard import markup, notices, words
from leaderboard.markup import Html
from leaderboard.states import utc_time
from leaderboard.tables import STATE_KIND


def cell_title(report: CellReport) -> str:
    """`pgd against trades under digits-linf`."""
    cell = report.row.cell
    if cell.attack == CLEAN:
        return f"Clean images of {cell.defense}"
    return f"{cell.attack} against {cell.defense} under {cell.threat}"


def inputs_list(report: CellReport) -> Html:
    """What the key of the cell is a digest of: names, digests, seed, arithmetic, protocol."""
    cell, examples = report.row.cell, report.examples
    attacked = cell.attack != CLEAN
    order = words.ORDER_WORDS.get(examples.order, examples.order)
    shown = [
        ("Data", f"{examples.dataset}, the first {examples.n} images {order}"),
        ("Outcomes", f"{cell.items}, one for each example or pair of example and target"),
        ("Seed", cell.seed),
        ("Mode", words.MODE_SENTENCES.get(cell.mode, cell.mode)),
        ("Arithmetic of the attack", f"{cell.numeric}; successes are confirmed in float32"),
        ("Version of the evaluation protocol", cell.protocol),
    ]
    digests = [
        ("Key", report.row.key),
        ("Threat model", cell.threat_id),
        ("Defense: source and weights", cell.defense_digest),
        ("Attack: source and parameters", cell.attack_digest),
        ("Examples", cell.examples),
        ("Surrogate or training half", cell.source_digest),
        ("Cell before it in the cascade", cell.before),
    ]
    links = [("Defense", markup.link("defense", markup.text(cell.defense), name=cell.defense))]
    if attacked:
        attack = markup.link("attack", markup.text(cell.attack), attack=cell.attack)
        links.append(("Attack", attack))
    return markup.definition_list(
        [
            *links,
            *((term, markup.text(value)) for term, value in shown),
            *((term, markup.tag("code", markup.text(value))) for term, value in digests if value),
        ]
    )


def results_list(report: CellReport) -> Html:
    """State, figures, cost, machines and second evaluations of the cell."""
    row = report.row
    kind = STATE_KIND.get(row.state, "quiet")
    state = markup.chip(row.state, kind, words.STATE_EXPLANATIONS[row.state])
    pairs: list[tuple[str, Html]] = [("State", state)]
    if row.reason:
        pairs.append(("Reason", markup.reason(row.reason)))
    if row.culprit is not None:
        pairs.append(("Caused by", markup.text(row.culprit)))
    pairs.append(("Verified outcomes", markup.text(f"{row.items_done} of {row.cell.items}")))
    if figures := row.figures:
        most = "—" if figures.max_distance is None else f"{figures.max_distance:.6g}"
        values = [
            ("Not broken", f"{figures.robust} of {row.cell.items}"),
            ("Still broken after rounding to 8 bits", figures.broken_8bit),
            ("Broken by a margin under 1e-4", figures.fragile),
            ("Refused by the referee", figures.refused),
            ("Largest perturbation of a success", most),
            ("Gradient evaluations", words.grouped(figures.gradients)),
            ("Queries", words.grouped(figures.forwards)),
            ("Forward passes of the referee's checks", words.grouped(figures.looks)),
        ]
        pairs += [(term, markup.text(value)) for term, value in values]
    pairs += [
        ("CPU time", markup.text(words.format_seconds(row.seconds))),
        ("Isolation of the code", markup.text(row.tier)),
        ("Last change", markup.text(utc_time(row.updated))),
    ]
    if report.fit is not None:
        spent = f"{words.grouped(report.fit.gradients)} gradient evaluations, "
        spent += f"{words.grouped(report.fit.forwards)} queries, "
        spent += words.format_seconds(report.fit.seconds)
        pairs.append(("Cost of fitting its one point", markup.text(spent)))
    pairs += [("Machine", markup.text(machine.sentence)) for machine in report.machines]
    pairs += [("Evaluated again", markup.reason(one.sentence)) for one in report.second]
    return markup.definition_list(pairs)


def command_notice(report: CellReport) -> notices.Notice:
    """The command that evaluates the cell again, or why there is none."""
    if report.command:
        return notices.Notice("Evaluate it again", (words.REPRODUCE_LEAD,), (report.command,))
    return notices.Notice("Evaluate it again", (words.NOT_REPRODUCIBLE,))
