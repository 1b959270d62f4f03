"""The report for a terminal: counts k/n with their interval, and gradient-masking warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bench.results.text_table import BlockTable, TextColumn

Json = Mapping[str, Any]

MODE_TEXT = {"full": "mode full", "rank": "mode rank: later attacks run on the survivors only"}
NO_FIGURE = ("missing", "skipped", "not applicable")
"""States of a matrix cell that was not evaluated."""


def text_report(report: Json) -> Group:
    """The JSON report as tables: ranking, matrix, detectors and warnings."""
    checks = [(row["defense"], check) for row in report["ranking"] for check in row["flags"]]
    warnings = [(defense, check) for defense, check in checks if check["state"] == "raised"]
    shown: list[RenderableType] = [
        _heading(report),
        terminal_ranking(report),
        terminal_matrix(report),
    ]
    if any(cell["detection"] for cell in report["matrix"]):
        shown.append(terminal_detectors(report))
    if warnings:
        shown.append(terminal_warnings(warnings))
    return Group(*shown, *_notes(report["ranking"]))


def _heading(report: Json) -> Text:
    threat, examples = report["threat"], report["examples"]
    rules = f"{threat['set']['name']} {threat['set']['eps']} on {threat['dataset']}"
    goal = f"access {threat['access']}, {threat['goal']['kind']}"
    size = f"{examples['n']} examples, {MODE_TEXT[report['mode']]}, digest {report['digest'][:12]}"
    return Text(f"{threat['name']}: {rules}, {goal}, {size}\n")


def terminal_ranking(report: Json) -> BlockTable:
    """One row per defense."""
    suite = report.get("suite")
    columns = (
        TextColumn("Rank"), TextColumn("Defense", "left"), TextColumn("Clean"),
        TextColumn("Required"), TextColumn("Robust"), TextColumn("95 %"),
        TextColumn("Strongest", "left"), TextColumn("Done"), TextColumn("Verdict", "left"),
        *([TextColumn(suite["name"])] if suite else []),
    )  # fmt: skip
    rows = [
        (
            _rank(row),
            row["defense"],
            count_text(row["clean"]),
            _known(row["robust_required"]),
            count_text(row["robust"]),
            interval_text(row["robust"]),
            row["strongest"] or "-",
            coverage_text(row),
            _verdict(row),
            *([_suite_figure(row["suite"])] if suite else []),
        )
        for row in report["ranking"]
    ]
    return BlockTable(f"Ranking under {report['threat']['name']}", columns, rows, keys=2)


def terminal_matrix(report: Json) -> Group:
    """Unbroken examples of n after each attack, or the state of a cell without a figure.

    In rank mode n is the survivors of the attacks before, and the attacks are in the order in which
    they ran. Attacks that were run on no defense are left out.
    """
    cells = {(cell["defense"], cell["attack"]): cell for cell in report["matrix"]}
    every = list(dict.fromkeys(attack for _, attack in cells))
    done = {attack for (_, attack), cell in cells.items() if cell["state"] not in NO_FIGURE}
    attacks = [name for name in every if name in done] or every
    defenses = [row["defense"] for row in report["ranking"]]
    of_survivors = ", of the survivors it ran on" if report["mode"] == "rank" else ""
    table = _matrix_table(f"Robust examples by attack{of_survivors}", cells, attacks, defenses)
    return Group(table, *_left_out(every, attacks))


def _matrix_table(
    title: str, cells: Mapping[tuple[str, str], Json], attacks: list[str], defenses: list[str]
) -> BlockTable:
    """The figures of all cells; the longer list of names is in rows."""
    if len(attacks) > len(defenses):
        rows = [(a, *(_figure(cells[d, a]) for d in defenses)) for a in attacks]
        return BlockTable(title, [TextColumn("Attack", "left"), *map(TextColumn, defenses)], rows)
    rows = [(d, *(_figure(cells[d, a]) for a in attacks)) for d in defenses]
    return BlockTable(title, [TextColumn("Defense", "left"), *map(TextColumn, attacks)], rows)


def _left_out(every: Sequence[str], shown: Sequence[str]) -> list[Text]:
    left = len(every) - len(shown)
    noun = "attack" if left == 1 else "attacks"
    return [Text(f"Left out: {left} {noun} that no defense was evaluated with.")] if left else []


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


def terminal_warnings(warnings: Iterable[tuple[str, Json]]) -> BlockTable:
    """The gradient-masking warnings of each defense with their evidence."""
    columns = [TextColumn(name, "left") for name in ("Defense", "Check", "Evidence")]
    rows = [(defense, check["name"], check["evidence"]) for defense, check in warnings]
    return BlockTable("Gradient-masking warnings", columns, rows, keys=2)


def count_text(count: Json) -> str:
    """A count as k/n."""
    return f"{count['k']}/{count['n']}"


def _known(count: Json) -> str:
    return count_text(count) if count["n"] else "-"


def coverage_text(row: Json) -> str:
    """Required attacks done, of those required, and other attacks done."""
    further = f" + {row['further']}" if row["further"] else ""
    return f"{row['coverage']['done']}/{row['coverage']['required']}{further}"


def interval_text(count: Json) -> str:
    """The interval in percent; two decimals from 10,000 examples on, else one."""
    decimals = 1 if count["n"] < 10_000 else 2
    return f"{100 * count['low']:.{decimals}f}-{100 * count['high']:.{decimals}f}"


def _rank(row: Json) -> str:
    if row["rank"] is None:
        return "-"
    best, worst = row["rank"]
    return f"{best}" if best == worst else f"{best}-{worst}"


def _verdict(row: Json) -> str:
    """The verdict, and the number of warnings of all checks that were tested."""
    warnings = sum(check["state"] == "raised" for check in row["flags"])
    tested = sum(check["state"] != "not tested" for check in row["flags"])
    return f"{row['verdict']} {warnings}/{tested}"


def _suite_figure(found: Json) -> str:
    """The count over the attacks of a suite; until all are done, how many are."""
    if found["robust"] is None:
        return f"{found['done']} of {found['attacks']} done"
    return count_text(found["robust"]) if found["robust"]["n"] else "undecided"


def _figure(cell: Json) -> str:
    return count_text(cell["robust"]) if cell["robust"] else str(cell["state"])


def _notes(rows: Iterable[Json]) -> list[Text]:
    """Each note once, after the defenses that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            about.setdefault(row["note"], []).append(row["defense"])
    return [Text(f"{', '.join(names)}: {note}") for note, names in about.items()]
