"""Downloads of what a page shows: CSV without spreadsheet formulas, and JSON with a schema."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import streamlit as st

from bench.core.cells import PROTOCOL, SCHEMA
from bench.core.statistics import Count
from bench.results.leaderboards import Leaderboard
from bench.results.matrix import MatrixCell
from bench.results.ranking import RankingRow
from bench.results.report_tables import report_tables
from bench.results.table_formats import table_as_latex, table_as_markdown
from leaderboard import reading

NESTED_FIELDS = ("robust", "detection")
"""Fields of a matrix cell that are records themselves."""
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


def spreadsheet_text(value: object) -> str:
    """A value as text that no spreadsheet interprets as a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA_PREFIXES) else text


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV, with the field names of the first row as header."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = list(rows[0]) if rows else []
    writer.writerow(names)
    writer.writerows([spreadsheet_text(row[name]) for name in names] for row in rows)
    return file.getvalue()


def as_json(
    leaderboard: Leaderboard, key: str, records: Sequence[RankingRow] | Sequence[MatrixCell]
) -> str:
    """Records with their leaderboard as JSON."""
    document = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "leaderboard": asdict(leaderboard),
        key: [asdict(record) for record in records],
    }
    return json.dumps(document, indent=1, default=str)


def flat_ranking(rows: Sequence[RankingRow]) -> list[dict[str, object]]:
    """One flat record per defense."""
    return [
        {
            "defense": row.defense,
            "rank_best": row.rank.best if row.rank else None,
            "rank_worst": row.rank.worst if row.rank else None,
            "tie_group": row.rank.group if row.rank else None,
            **_counts("robust", row.robust),
            **_counts("clean", row.clean),
            **_counts("robust_required", row.robust_required),
            **_counts("robust_ranked", row.robust_ranked),
            "strongest": row.strongest,
            "required_done": row.coverage.done,
            "required": row.coverage.required,
            "further_done": row.further,
            "verdict": row.verdict,
            "flags_raised": "; ".join(f.name for f in row.flags if f.state == "raised"),
            "claim": row.claim.robust if row.claim else None,
            "claim_verdict": row.claim.verdict if row.claim else None,
            "tier": row.tier,
            "note": row.note,
        }
        for row in rows
    ]


def flat_matrix(cells: Sequence[MatrixCell]) -> list[dict[str, object]]:
    """One flat record per cell."""
    return [
        {
            **{key: value for key, value in asdict(cell).items() if key not in NESTED_FIELDS},
            **_counts("robust", cell.robust),
            "auc": cell.detection.auc if cell.detection else None,
            **_counts("passed", cell.detection.passed if cell.detection else None),
        }
        for cell in cells
    ]


def _counts(name: str, count: Count | None) -> dict[str, Any]:
    values = asdict(count) if count else dict.fromkeys(("k", "n", "low", "high"))
    return {f"{name}_{part}": value for part, value in values.items()}


def shown_report(report: Mapping[str, Any], defenses: Sequence[str]) -> dict[str, Any]:
    """A JSON report with the shown defenses alone, in their order."""
    rows = {row["defense"]: row for row in report["ranking"]}
    cells = [cell for name in defenses for cell in report["matrix"] if cell["defense"] == name]
    return {**report, "ranking": [rows[name] for name in defenses], "matrix": cells}


def download_buttons(
    name: str, leaderboard: Leaderboard, records: Sequence[RankingRow] | Sequence[MatrixCell],
    flat: Sequence[Mapping[str, object]],
) -> None:  # fmt: skip
    """Buttons that download the shown records as CSV, JSON, Markdown and LaTeX, and the sources."""
    key = name.partition("-")[0]
    report = reading.read_json_report(leaderboard)
    shown = shown_report(report, list(dict.fromkeys(record.defense for record in records)))
    (table,) = report_tables(shown, key)
    files = (
        ("CSV", as_csv(flat), "csv", "text/csv"),
        ("JSON", as_json(leaderboard, key, records), "json", "application/json"),
        ("Markdown", table_as_markdown(table), "md", "text/markdown"),
        ("LaTeX", table_as_latex(table, name, report["root"]), "tex", "text/x-tex"),
        ("BibTeX", "\n\n".join((*reading.read_citations().entries, "")), "bib", "text/x-bibtex"),
    )
    with st.container(horizontal=True):
        for label, text, ending, kind in files:
            st.download_button(f"Download {label}", text, f"{name}.{ending}", kind)
