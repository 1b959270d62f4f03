"""The ranking and the matrix of a JSON report as tables of counts and texts.

Every format of a report (text, CSV, Markdown, LaTeX) shows these cells, so that none of them can
have other figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench.core.errors import BenchError
from bench.core.statistics import Count
from bench.results.text_table import BlockTable, TextColumn

_Json = Mapping[str, Any]

NO_FIGURE = ("missing", "skipped", "not applicable")
"""States of a matrix cell that was not evaluated."""
NOT_COUNTED = "-"
"""In place of a count where nothing was counted."""
FINE_N = 10_000
"""From this many examples on, percentages have two decimals, else one."""
TABLE_NAMES = ("ranking", "matrix")


@dataclass(frozen=True)
class CellInterval:
    """The 95 % interval of a count, as a cell of a table."""

    count: Count


ReportCell: TypeAlias = str | Count | CellInterval


@dataclass(frozen=True)
class ReportTable:
    """A table of one leaderboard; its cells are texts, counts, and intervals of counts."""

    name: str
    title: str
    columns: Sequence[TextColumn]
    rows: Sequence[Sequence[ReportCell]]
    keys: int
    """The first columns, which name the row."""
    n: int
    """The number of examples of the leaderboard; a count of fewer says so."""

    def in_blocks(self) -> BlockTable:
        """The table for a terminal."""
        rows = [[cell_text(cell) for cell in row] for row in self.rows]
        return BlockTable(self.title, self.columns, rows, self.keys)


def cell_text(cell: ReportCell) -> str:
    """A cell on a terminal: a count as k/n, an interval in percent.

    >>> cell_text(Count(3, 4, 0.301, 0.954)), cell_text(CellInterval(Count(3, 4, 0.301, 0.954)))
    ('3/4', '30.1-95.4')
    """
    if isinstance(cell, CellInterval):
        decimals = decimals_of(cell.count.n)
        return f"{100 * cell.count.low:.{decimals}f}-{100 * cell.count.high:.{decimals}f}"
    return f"{cell.k}/{cell.n}" if isinstance(cell, Count) else cell


def decimals_of(n: int) -> int:
    """The decimals of a percentage of n examples."""
    return 1 if n < FINE_N else 2


def report_tables(report: _Json, name: str = "") -> list[ReportTable]:
    """The ranking and the matrix of a report, or the named one of them.

    Raises BenchError where there is no table of that name.
    """
    if name not in ("", *TABLE_NAMES):
        known = ", ".join((*TABLE_NAMES, "radii", "corruptions", "union"))
        raise BenchError(f"--table is {name!r}; use one of {known}.")
    found = (ranking_of_counts(report), matrix_of_counts(report))
    return [table for table in found if name in ("", table.name)]


def ranking_of_counts(report: _Json) -> ReportTable:
    """One row per defense."""
    suite = report.get("suite")
    columns = (
        TextColumn("Rank"), TextColumn("Defense", "left"), TextColumn("Clean"),
        TextColumn("Ranked"), TextColumn("Robust"), TextColumn("95 %"),
        TextColumn("Strongest", "left"), TextColumn("Done"), TextColumn("Verdict", "left"),
        *([TextColumn(suite["name"])] if suite else []),
    )  # fmt: skip
    rows: list[tuple[ReportCell, ...]] = [
        (
            _rank(row),
            row["defense"],
            count_of(row["clean"]),
            known_count(row["robust_ranked"]),
            count_of(row["robust"]),
            CellInterval(count_of(row["robust"])),
            row["strongest"] or "-",
            coverage_text(row),
            _verdict(row),
            *([_suite_figure(row["suite"])] if suite else []),
        )
        for row in report["ranking"]
    ]
    title = f"Ranking under {report['threat']['name']}"
    return ReportTable("ranking", title, columns, rows, 2, report["examples"]["n"])


def matrix_of_counts(report: _Json) -> ReportTable:
    """Unbroken examples of n after each attack, or the state of a cell without a figure.

    The longer list of names is in rows. In rank mode n is the survivors of the attacks before, and
    the attacks are in the order in which they ran. Attacks that were run on no defense are left
    out.
    """
    cells = {(cell["defense"], cell["attack"]): cell for cell in report["matrix"]}
    attacks = attacks_with_figures(report)
    defenses = [row["defense"] for row in report["ranking"]]
    of_survivors = ", of the survivors it ran on" if report["mode"] != "full" else ""
    if len(attacks) > len(defenses):
        head, names = "Attack", defenses
        rows = [(a, *(_figure(cells[d, a]) for d in defenses)) for a in attacks]
    else:
        head, names = "Defense", attacks
        rows = [(d, *(_figure(cells[d, a]) for a in attacks)) for d in defenses]
    columns = [TextColumn(head, "left"), *map(TextColumn, names)]
    title = f"Robust examples by attack{of_survivors}"
    return ReportTable("matrix", title, columns, rows, 1, report["examples"]["n"])


def matrix_list(report: _Json) -> ReportTable:
    """The matrix with one row for each defense and attack, those without a figure included."""
    columns = [TextColumn(name, "left") for name in ("Defense", "Attack", "State")]
    rows = [
        (cell["defense"], cell["attack"], str(cell["state"]), _listed_figure(cell))
        for cell in report["matrix"]
    ]
    names = (*columns, TextColumn("Robust"))
    n = report["examples"]["n"]
    return ReportTable("matrix", "Robust examples by attack", names, rows, 2, n)


def attacks_with_figures(report: _Json) -> list[str]:
    """The attacks with a figure, in the order of the matrix; all where none has one."""
    every = list(dict.fromkeys(cell["attack"] for cell in report["matrix"]))
    done = {cell["attack"] for cell in report["matrix"] if cell["state"] not in NO_FIGURE}
    return [name for name in every if name in done] or every


def count_of(record: _Json) -> Count:
    """A count of a JSON report."""
    return Count(record["k"], record["n"], record["low"], record["high"])


def known_count(record: _Json) -> Count | str:
    """A count, or a dash where nothing was counted."""
    return count_of(record) if record["n"] else NOT_COUNTED


def coverage_text(row: _Json) -> str:
    """Required attacks done, of those required, and other attacks done."""
    further = f" + {row['further']}" if row["further"] else ""
    return f"{row['coverage']['done']}/{row['coverage']['required']}{further}"


def _figure(cell: _Json) -> ReportCell:
    return count_of(cell["robust"]) if cell["robust"] else str(cell["state"])


def _listed_figure(cell: _Json) -> ReportCell:
    return count_of(cell["robust"]) if cell["robust"] else ""


def _rank(row: _Json) -> str:
    if row["rank"] is None:
        return "-"
    best, worst = row["rank"]
    return f"{best}" if best == worst else f"{best}-{worst}"


def _verdict(row: _Json) -> str:
    """The verdict, and the number of warnings of all checks that were tested."""
    warnings = sum(check["state"] == "raised" for check in row["flags"])
    tested = sum(check["state"] != "not tested" for check in row["flags"])
    return f"{row['verdict'] or 'not evaluated'} {warnings}/{tested}"


def _suite_figure(found: _Json) -> ReportCell:
    """The count over the attacks of a suite; until all are done, how many are."""
    if found["robust"] is None:
        return f"{found['done']} of {found['attacks']} done"
    return count_of(found["robust"]) if found["robust"]["n"] else "undecided"
