"""Tables for papers and spreadsheets: CSV, Markdown, and LaTeX for the package booktabs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from bench.core.statistics import Count
from bench.results.report_tables import CellInterval, ReportCell, ReportTable, decimals_of
from bench.results.text_table import TextColumn

LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_",
    "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
"""Signs that LaTeX reads as commands or prints as other signs."""
MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|~#])")
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""First signs of a text that a spreadsheet takes for a formula."""
COUNT_PARTS = ("k", "n", "low", "high")


def table_as_csv(table: ReportTable) -> str:
    """The table with a header; a count is four columns, and its interval is in them.

    Names that a spreadsheet would take for a formula begin with an apostrophe.
    """
    counted = [any(isinstance(row[at], Count) for row in table.rows) for at in _plain(table)]
    header: list[str] = []
    for at, is_count in zip(_plain(table), counted, strict=True):
        name = _field_name(table.columns[at].name)
        header += [f"{name}_{part}" for part in COUNT_PARTS] if is_count else [name]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        values: list[object] = []
        for at, is_count in zip(_plain(table), counted, strict=True):
            values += _count_values(row[at]) if is_count else [_no_formula_sign(str(row[at]))]
        writer.writerow(values)
    return file.getvalue()


def _plain(table: ReportTable) -> list[int]:
    """The columns that hold no intervals."""
    intervals = {
        at for row in table.rows for at, cell in enumerate(row) if isinstance(cell, CellInterval)
    }
    return [at for at in range(len(table.columns)) if at not in intervals]


def _field_name(heading: str) -> str:
    """`robust_ranked` for `Robust, ranked`."""
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")


def _count_values(cell: ReportCell) -> list[object]:
    if isinstance(cell, Count):
        return [cell.k, cell.n, cell.low, cell.high]
    return [""] * len(COUNT_PARTS)


def _no_formula_sign(text: str) -> str:
    is_number = re.fullmatch(r"-|[-+]?[\d.]+", text)
    return f"'{text}" if text.startswith(FORMULA_SIGNS) and not is_number else text


def table_as_markdown(table: ReportTable) -> str:
    """The table with its title; counts are percentages of the examples in the title."""
    texts = [[escape_markdown(paper_text(cell, table.n)) for cell in row] for row in table.rows]
    lines = [[escape_markdown(column.name) for column in table.columns]]
    lines.append(["---:" if column.justify == "right" else ":---" for column in table.columns])
    rows = markdown_rows([*lines, *texts])
    return f"**{escape_markdown(paper_title(table))}**\n\n{rows}\n"


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are escaped already, as the lines of a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def escape_markdown(text: str) -> str:
    r"""Text as Markdown prints it.

    >>> escape_markdown("pgd[rate=2]_x|y")
    'pgd\\[rate=2\\]\\_x\\|y'
    """
    return MARKDOWN_SIGNS.sub(r"\\\1", text)


def table_as_latex(table: ReportTable, label: str, root: str) -> str:
    """The table as a float for the package booktabs; `root` is printed in a comment.

    `label` is the name by which the text refers to it, of any signs.
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", label).strip("-")
    texts = [
        [
            _latex_cell(cell, column, table.n)
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]
    heads = [escape_latex(column.name) for column in table.columns]
    return "\n".join(
        [
            f"% Root of all results in the database: {root}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(paper_title(table))}}}",
            rf"\label{{tab:{plain}}}",
            *latex_tabular(heads, texts, [column.justify == "right" for column in table.columns]),
            r"\end{table}",
            "",
        ]
    )


def latex_tabular(
    heads: Sequence[str], rows: Sequence[Sequence[str]], figures: Sequence[bool]
) -> list[str]:
    """The lines of a tabular with the rules of booktabs, of cells that are escaped already.

    `figures`: whether a column holds figures, which stand on the right.
    """
    justified = "".join("r" if right else "l" for right in figures)
    lines = [rf"{' & '.join(row)} \\" for row in rows]
    start = [rf"\begin{{tabular}}{{{justified}}}", r"\toprule", rf"{' & '.join(heads)} \\"]
    return [*start, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]


def escape_latex(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> escape_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text)


def _latex_cell(cell: ReportCell, column: TextColumn, n: int) -> str:
    text = escape_latex(paper_text(cell, n))
    # A range of figures has an en dash.
    return re.sub(r"(?<=\d)-(?=\d)", "--", text) if column.justify == "right" else text


def paper_title(table: ReportTable) -> str:
    """The title of a table whose counts are percentages."""
    return f"{table.title}, in % of {table.n} examples"


def paper_text(cell: ReportCell, n: int) -> str:
    """A cell of a paper: a count in percent, and as k/n where its n is not that of the table.

    >>> [paper_text(Count(3, 4, 0.301, 0.954), n) for n in (4, 8)]
    ['75.0', '75.0 (3/4)']
    """
    if isinstance(cell, CellInterval):
        decimals = decimals_of(cell.count.n)
        return f"{100 * cell.count.low:.{decimals}f}-{100 * cell.count.high:.{decimals}f}"
    if not isinstance(cell, Count):
        return cell
    if not cell.n:
        return "-"
    share = f"{100 * cell.k / cell.n:.{decimals_of(cell.n)}f}"
    return share if cell.n == n else f"{share} ({cell.k}/{cell.n})"
