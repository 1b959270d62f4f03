"""The report for a terminal: counts k/n with their interval, and gradient-masking warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bench.results.corruption_rows import corruption_table, has_corruptions
from bench.results.measures import seconds_text
from bench.results.rank_notes import defense_option
from bench.results.report_tables import attacks_with_figures, matrix_of_counts, ranking_of_counts
from bench.results.text_table import BlockTable, TextColumn
from bench.results.version_notes import apart_sentence

Json = Mapping[str, Any]

MODE_TEXT = {
    "full": "mode full",
    "rank": "mode rank: later attacks run on the survivors only",
    "fast": "suite fast: ranks are not those of standard",
}
ORDER_TEXT = {"balanced": "the first of the balanced order", "file": "the first of the file"}


def text_report(report: Json) -> Group:
    """The JSON report as tables: ranking, matrix, detectors and warnings."""
    shown: list[RenderableType] = [
        _heading(report),
        ranking_of_counts(report).in_blocks(),
        *([corruption_table(report).in_blocks()] if has_corruptions(report) else []),
        terminal_matrix(report),
    ]
    if any(row["measures"]["costs"] for row in report["ranking"]):
        shown.append(terminal_measures(report))
    if any(row["measures"]["shared"] for row in report["ranking"]):
        shown.append(terminal_shared_points(report))
    if any(cell["detection"] for cell in report["matrix"]):
        shown.append(terminal_detectors(report))
    if any(cell["true_gradient"] is not None for cell in report["matrix"]):
        shown.append(terminal_bpda(report))
    if any(_refused(cell) for cell in report["matrix"]):
        shown.append(terminal_refusals(report))
    if any(_warnings(row) for row in report["ranking"]):
        shown.append(terminal_warnings(report["ranking"]))
    ranking = report["ranking"]
    notes = (*_notes(ranking), *_audits(ranking), *_version_notes(ranking), *_rank_notes(ranking))
    warned = report.get("attack_checks", {})
    notes = (*(Text(f"{attack}: {found}") for attack, found in warned.items()), *notes)
    notes = (*notes, *_machine_notes(report), *_second_notes(report["matrix"]))
    notes = (*notes, *_canaries(ranking), _root(report))
    return Group(*shown, *_not_adaptive(report["ranking"]), *notes)


def _heading(report: Json) -> Text:
    threat, examples = report["threat"], report["examples"]
    rules = f"{threat['set']['name']} {threat['set']['eps']} on {threat['dataset']}"
    goal = f"access {threat['access']}, {threat['goal']['kind']}"
    first = ORDER_TEXT[examples["order"]]
    size = f"{examples['n']} examples ({first}), {MODE_TEXT[report['mode']]}"
    digest = f"digest {report['digest'][:12]}"
    return Text(f"{threat['name']}: {rules}, {goal}, {size}, {digest}\n")


def terminal_matrix(report: Json) -> Group:
    """The matrix, and how many attacks it leaves out because no defense was evaluated with them."""
    every = dict.fromkeys(cell["attack"] for cell in report["matrix"])
    left_out = _left_out(list(every), attacks_with_figures(report))
    return Group(matrix_of_counts(report).in_blocks(), *left_out)


def _left_out(every: Sequence[str], shown: Sequence[str]) -> list[Text]:
    left = len(every) - len(shown)
    noun = "attack" if left == 1 else "attacks"
    return [Text(f"Left out: {left} {noun} that no defense was evaluated with.")] if left else []


def terminal_shared_points(report: Json) -> BlockTable:
    """Attacks with one point for all images: changed classes, robust images, cost of the fit."""
    keys = (TextColumn("Defense", "left"), TextColumn("Attack", "left"))
    names = ("Class changed", "Robust", "Queries", "Gradients", "Seconds")
    rows = [
        (
            row["defense"],
            one["attack"],
            *(count_text(one[name]) for name in ("changed", "robust")),
            *(str(one[name]) for name in ("queries", "gradients")),
            seconds_text(one["seconds"]),
        )
        for row in report["ranking"]
        for one in row["measures"]["shared"]
    ]
    columns = [*keys, *map(TextColumn, names)]
    title = "One point for all images, with the cost of fitting it"
    return BlockTable(title, columns, rows, keys=2)


def terminal_detectors(report: Json) -> BlockTable:
    """Rejected clean images, and rejected, fooled and accepted images of each attack."""
    clean = {row["defense"]: row["rejects"]["clean"] for row in report["ranking"] if row["rejects"]}
    names = ("AUC", "Clean", "Attacked", "Fooled", "Fooled, accepted")
    keys = (TextColumn("Defense", "left"), TextColumn("Attack", "left"))
    rows = []
    for cell in report["matrix"]:
        if found := cell["detection"]:
            counts = (clean[cell["defense"]], found["rejected"], found["fooled"], found["passed"])
            figures = (f"{found['auc']:.3f}", *map(count_text, counts))
            rows.append((cell["defense"], cell["attack"], *figures))
    title = "Detectors: images rejected, and adversarial images accepted"
    return BlockTable(title, (*keys, *map(TextColumn, names)), rows, keys=2)


def terminal_warnings(ranking: Iterable[Json]) -> BlockTable:
    """The gradient-masking warnings of each defense with evidence and follow-up attacks."""
    columns = [TextColumn(name, "left") for name in ("Defense", "Check", "Evidence")]
    rows = [
        (row["defense"], check["name"], f"{check['evidence']} {_follow_ups(row, check['name'])}")
        for row in ranking
        for check in _warnings(row)
    ]
    return BlockTable("Gradient-masking warnings", columns, rows, keys=2)


def _warnings(row: Json) -> list[Json]:
    return [check for check in row["flags"] if check["state"] == "raised"]


def _follow_ups(row: Json, check: str) -> str:
    """What the follow-up attacks of a warning have shown, and the figure before them."""
    found = next(one for one in row["follow_ups"] if one["check"] == check)
    if not found["done"]:
        return str(found["sentence"])
    answer = "Answered" if found["answered"] else "Open"
    before = f"before follow-ups {count_text(row['robust_required'])}"
    return f"{answer}: {found['sentence']} ({before})"


def terminal_measures(report: Json) -> BlockTable:
    """Further measures over all attacks, one row per defense."""
    names = ("Of correct", "Confidence", "Top-5 error", "Risk", "PGD gap", "s/image")
    rows = [
        (
            row["defense"],
            _known(row["robust_on_correct"]),
            _change(row["measures"]["confidence"], "before", "after", 2),
            *(_known(found["robust"]) for found in _top_five(row)),
            _change(row["measures"]["risk"], "clean", "adversarial", 2),
            _points(row["measures"]["first_order_gap"]),
            seconds_text(sum(cost["seconds"] for cost in row["measures"]["costs"])),
        )
        for row in report["ranking"]
    ]
    columns = [TextColumn("Defense", "left"), *map(TextColumn, names)]
    title = "Measures over all attacks, clean to attacked"
    return BlockTable(title, columns, rows, keys=1)


def _top_five(row: Json) -> list[Json]:
    found = [one for one in row["measures"]["top_k"] if one["k"] == 5]
    return found or [{"robust": {"n": 0}}]


def _change(found: Json | None, clean: str, attacked: str, decimals: int) -> str:
    if found is None:
        return "-"
    return f"{found[clean]:.{decimals}f} to {found[attacked]:.{decimals}f}"


def _points(found: Json | None) -> str:
    return "-" if found is None else f"{100 * found['gap']:.1f}"


def terminal_bpda(report: Json) -> BlockTable:
    """Examples broken through the declared BPDA approximation, and by the true gradient alone."""
    rows = [
        (cell["defense"], cell["attack"], str(_through_approximation(cell, report)),
         str(cell["true_gradient"]))
        for cell in report["matrix"]
        if cell["true_gradient"] is not None
    ]  # fmt: skip
    columns = [TextColumn("Defense", "left"), TextColumn("Attack", "left")]
    columns += [TextColumn("Approximation"), TextColumn("True gradient alone")]
    title = "Examples broken through the declared BPDA approximation, and by the true gradient"
    return BlockTable(title, columns, rows, keys=2)


def _through_approximation(cell: Json, report: Json) -> int:
    clean = next(r["clean"]["k"] for r in report["ranking"] if r["defense"] == cell["defense"])
    return int(clean) - int(cell["robust"]["k"]) - int(cell["true_gradient"])


def terminal_refusals(report: Json) -> BlockTable:
    """The candidates that the referee refused, by reason, for each cell that has some."""
    reasons = {"norm": "Outside the set", "box": "Outside [0, 1]", "not_finite": "Not finite",
               "not_adversarial": "Not adversarial"}  # fmt: skip
    columns = (TextColumn("Defense", "left"), TextColumn("Attack", "left"))
    rows = [
        (cell["defense"], cell["attack"], *(_or_dash(cell["refusals"][name]) for name in reasons))
        for cell in report["matrix"]
        if _refused(cell)
    ]
    title = "Candidates that the referee refused"
    return BlockTable(title, (*columns, *map(TextColumn, reasons.values())), rows, keys=2)


def _refused(cell: Json) -> bool:
    return any((cell["refusals"] or {}).values())


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def count_text(count: Json) -> str:
    """A count as k/n."""
    return f"{count['k']}/{count['n']}"


def _known(count: Json) -> str:
    return count_text(count) if count["n"] else "-"


def _audits(rows: Iterable[Json]) -> list[Text]:
    """What the audit of each row of the suite `fast` has shown."""
    found = [(row["defense"], row["audit"]) for row in rows if "audit" in row]
    return [Text(f"{name}: suite fast, {audit['sentence']}.") for name, audit in found]


def _rank_notes(rows: Iterable[Json]) -> list[Text]:
    """What would change the rank of each ranked row that is tied with a neighbour."""
    return [
        Text(f"{row['defense']}: {row['separation']['sentence']}")
        for row in rows
        if row["separation"] and row["separation"]["tied"]
    ]


def _version_notes(rows: Iterable[Json]) -> list[Text]:
    """What each row states about its versions, and which rows are therefore never called tied."""
    known = [row for row in rows if "versions" in row]
    lines = [f"{row['defense']}: {text}" for row in known for text in row["versions"]["sentences"]]
    apart = apart_sentence({row["defense"]: row.get("apart", ()) for row in rows})
    return [Text(line) for line in (*lines, *([apart] if apart else []))]


def _machine_notes(report: Json) -> list[Text]:
    """The machine classes where there are several, and the cells that more than one computed."""
    if len(report["machines"]) < 2:
        return []
    lines = [f"{found['sentence']} ({found['cells']} cells)" for found in report["machines"]]
    mixed = [
        f"{cell['attack']} against {cell['defense']} was computed on"
        f" {len(cell['machines'])} machine classes."
        for cell in report["matrix"]
        if len(cell["machines"]) > 1
    ]
    return [Text(line) for line in ("Machine classes of these results:", *lines, *mixed)]


def _second_notes(cells: Iterable[Json]) -> list[Text]:
    """What evaluating cells again has shown: how many agree, and each that does not."""
    found = [(cell, one) for cell in cells for one in cell["second"]]
    if not found:
        return []
    same = sum(one["differ"] == 0 for _, one in found)
    lines = [
        f"{cell['attack']} against {cell['defense']}, {one['sentence']}"
        for cell, one in found
        if one["differ"]
    ]
    counted = f"Second evaluations of cells: {same} of {len(found)} gave the same verdicts."
    return [Text(line) for line in (counted, *lines)]


def _not_adaptive(rows: Iterable[Json]) -> list[Text]:
    """The mark of defenses that no attack was written for."""
    names = [row["defense"] for row in rows if not row["adaptive"]]
    return [Text(f"No attack was written for {', '.join(names)}.")] if names else []


def _notes(rows: Iterable[Json]) -> list[Text]:
    """Each note once, after the defenses that it is about; its command then names all of them."""
    about: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["note"]:
            parts = row["note"].split(f"{defense_option(row['defense'])} ")
            about.setdefault(tuple(parts), []).append(row["defense"])
    return [
        Text(f"{', '.join(names)}: {f'{_options(names)} '.join(parts)}")
        for parts, names in about.items()
    ]


def _options(names: Iterable[str]) -> str:
    return "".join(defense_option(name) for name in names)


def _root(report: Json) -> Text:
    return Text(f"Root of all results in the database: {report['root']}")


def _canaries(rows: Iterable[Json]) -> list[Text]:
    """What the canaries of the code that evaluated the rows showed, where they came out right."""
    checks = (check for row in rows for check in row["flags"] if check["name"] == "canaries")
    passed = {check["evidence"]: None for check in checks if check["state"] == "clear"}
    return [Text(sentence) for sentence in passed]
