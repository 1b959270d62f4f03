"""The result of evaluating one model: counts by radius and attack, as table, figure and file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from bench.core.errors import BenchError
from bench.core.statistics import Count, count_interval
from bench.core.variant_names import variant_order
from bench.results.example_results import DefenseResult, load_results
from bench.results.figures import draw_accuracy_curve, draw_attack_bars
from bench.results.leaderboards import Leaderboard, find_leaderboard, leaderboards
from bench.results.masking_checks import WARNING
from bench.results.ranking import RankingRow, ranking_rows
from bench.results.table_formats import (
    escape_latex,
    escape_markdown,
    latex_tabular,
    markdown_rows,
)
from bench.results.text_table import BlockTable, TextColumn
from bench.results.verdicts import load_check_context
from bench.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TABLE_WIDTH = 100
"""Characters of a printed table."""
WORST_CASE = "worst case"
"""Name of the figure over all attacks, example by example."""
RESULT_COLUMNS = (
    "threat_model", "norm", "eps", "attack", "robust", "n", "low", "high", "eight_bit", "refused",
    "queries",
)  # fmt: skip


@dataclass(frozen=True)
class AttackCount:
    """One attack under one threat model; `worst case` is the figure over all of them."""

    threat_model: str
    norm: str
    eps: Fraction
    attack: str
    robust: Count
    """Examples that are right and that the attack did not break, of those it ran on."""
    eight_bit: int | None
    """The same with adversarial examples rounded to 8 bits; None for `worst case` alone."""
    refused: int | None
    """Candidates that the referee refused."""
    queries: float | None
    """Median number of queries up to the first success; None without a success."""

    def values(self) -> tuple[Any, ...]:
        """The values of RESULT_COLUMNS."""
        count = self.robust
        counts = (count.k, count.n, count.low, count.high)
        named = (self.threat_model, self.norm, str(self.eps), self.attack)
        return (*named, *counts, self.eight_bit, self.refused, self.queries)


@dataclass(frozen=True)
class ThreatResult:
    """A model under one threat model."""

    leaderboard: Leaderboard
    result: DefenseResult
    row: RankingRow
    attacks: tuple[AttackCount, ...]

    @property
    def eps(self) -> Fraction:
        """The radius."""
        return Fraction(str(self.leaderboard.set["eps"]))


@dataclass(frozen=True)
class EvaluationResult:
    """A model under one threat model, or under several that differ in the radius."""

    name: str
    threats: tuple[ThreatResult, ...]
    """By radius, the smallest first."""
    url: str = ""
    """The database with every outcome: a URL, or the path of a SQLite file."""

    # --- figures

    @property
    def n(self) -> int:
        """The number of examples."""
        return len(self.threats[0].result.clean)

    @property
    def clean(self) -> Count:
        """Examples that are classified correctly without an attack."""
        return self.threats[0].row.clean

    @property
    def robust(self) -> Count:
        """Examples that are right and that no attack broke; BenchError for several radii."""
        return self.at().row.robust

    @property
    def verdict(self) -> str:
        """`sound`, `suspect` or `invalid`: what the gradient-masking checks say."""
        return self.at().row.verdict

    @property
    def survivors(self) -> npt.NDArray[np.bool_]:
        """[n] bool: right on the clean image and broken by no attack."""
        return self.at().result.robust()

    def at(self, eps: float | str | Fraction | None = None) -> ThreatResult:
        """The result at one radius. Raises BenchError where it was not evaluated."""
        known = ", ".join(str(threat.eps) for threat in self.threats)
        if eps is None:
            if len(self.threats) > 1:
                raise BenchError(f"several radii were evaluated: use result.at(eps) with {known}.")
            return self.threats[0]
        for threat in self.threats:
            if float(threat.eps) == float(Fraction(eps)):
                return threat
        raise BenchError(f"eps {eps} was not evaluated; there are {known}.")

    @property
    def attacks(self) -> tuple[AttackCount, ...]:
        """One entry for each radius and attack, and the worst case."""
        return tuple(count for threat in self.threats for count in threat.attacks)

    # --- tables

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas table with one row for each radius and attack."""
        import pandas as pd

        return pd.DataFrame(
            [count.values() for count in self.attacks], columns=list(RESULT_COLUMNS)
        )

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """The table as CSV: text, or written to a file."""
        text: str | None = self.to_dataframe().to_csv(path, index=False)
        return text

    def to_markdown(self) -> str:
        """The table in Markdown."""
        heading = ("Attack", "eps", "Robust", "95 %")
        escaped = [[escape_markdown(text) for text in row] for row in self._rows()]
        return markdown_rows([heading, ["---"] * len(heading), *escaped])

    def to_latex(self) -> str:
        """The table in LaTeX, for the package booktabs."""
        heads = ("Attack", r"$\epsilon$", "Robust", r"95\,\%")
        rows = [[escape_latex(text) for text in row] for row in self._rows()]
        return "\n".join(latex_tabular(heads, rows, (False, False, True, True)))

    def _rows(self) -> list[tuple[str, str, str, str]]:
        clean = ("clean", "0", _percent(self.clean), _span(self.clean))
        found = [
            (count.attack, str(count.eps), _percent(count.robust), _span(count.robust))
            for count in self.attacks
        ]
        return [clean, *found]

    def __str__(self) -> str:
        """The table as text, with warnings."""
        console = Console(width=TABLE_WIDTH, color_system=None)
        columns = (
            TextColumn("Attack", "left"), TextColumn("eps"), TextColumn("Robust"),
            TextColumn("95 %"),
        )  # fmt: skip
        with console.capture() as capture:
            console.print(BlockTable(self._title(), columns, self._rows()))
            for sentence in (*self.audits, *self.warnings):
                console.print(sentence, markup=False, highlight=False)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        """The table for a notebook; every text is escaped by pandas."""
        import pandas as pd

        frame = pd.DataFrame(self._rows(), columns=["Attack", "eps", "Robust", "95 %"])
        return frame.to_html(index=False, escape=True)

    def _title(self) -> str:
        board = self.threats[0].leaderboard
        return f"{self.name} on {self.n} examples of {board.dataset}, {board.set['name']}"

    @property
    def audits(self) -> tuple[str, ...]:
        """Sentences on the audits of the suite `fast`; empty for other suites."""
        found = [(threat, threat.row.audit) for threat in self.threats]
        return tuple(f"eps {t.eps}: suite fast, {audit.sentence}." for t, audit in found if audit)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on gradient-masking checks that warn."""
        found = [
            f"{flag.name}: {flag.evidence}"
            for threat in self.threats
            for flag in threat.row.flags
            if flag.state == WARNING
        ]
        return tuple(dict.fromkeys(found))

    # --- figures on paper, files

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw accuracy against eps for several radii, else bars of the attacks (matplotlib)."""
        named = dict.fromkeys(count.attack for count in self.attacks)
        if len(self.threats) == 1:
            counts = {count.attack: count.robust for count in self.attacks}
            title = f"{self.name}, eps {self.threats[0].eps}"
            return draw_attack_bars({"clean": self.clean} | counts, title, axes)
        points = {
            name: [(0.0, self.clean)]
            + [(float(c.eps), c.robust) for c in self.attacks if c.attack == name]
            for name in named
        }
        label = f"eps ({self.threats[0].leaderboard.set['name']})"
        return draw_accuracy_curve(points, self.name, label, axes)

    def save(self, path: str | Path) -> Path:
        """Write every outcome to a new SQLite database, which `bench report --db` reads.

        Raises UnavailableError where the file exists or cannot be written.
        """
        with Store.open(self.url, read_only=True) as store:
            store.backup(path)
        return Path(path)


def load_evaluation(
    store: Store, name: str, threats: Sequence[str], order: str, mode: str = "full"
) -> EvaluationResult:
    """The result of one defense under threat models, by name, from a database.

    Raises BenchError where there is no such leaderboard.
    """
    known = leaderboards(store)
    found = []
    for threat in threats:
        board = find_leaderboard(store, threat, mode, order)
        results = load_results(store, board)
        rows = ranking_rows(results, load_check_context(store, results, known))
        row = next(row for row in rows if row.defense == name)
        result = results.defenses[name]
        found.append(ThreatResult(board, result, row, _attack_counts(board, result, row)))
    return EvaluationResult(name, tuple(sorted(found, key=lambda one: one.eps)))


def _attack_counts(
    board: Leaderboard, result: DefenseResult, row: RankingRow
) -> tuple[AttackCount, ...]:
    shared = (board.name, str(board.set["name"]), Fraction(str(board.set["eps"])))
    counts = []
    for attack, found in result.attacks.items():
        # In the mode `fast` most attacks meet a part of the examples.
        among = ~found.left_out if board.mode == "full" else found.evaluated
        right = result.robust([attack]) & among
        eight_bit = int((result.clean & ~found.broken_8bit & among).sum())
        spent = found.forwards[found.broken & result.clean]
        count = count_interval(int(right.sum()), int(among.sum()))
        queries = float(np.median(spent)) if len(spent) else None
        refused = found.refusals.total
        counts.append(AttackCount(*shared, attack, count, eight_bit, refused, queries))
    worst = AttackCount(*shared, WORST_CASE, row.robust, None, None, None)
    return (*sorted(counts, key=lambda count: variant_order(count.attack)), worst)


def _percent(count: Count) -> str:
    return f"{100 * count.k / count.n:.1f} % ({count.k}/{count.n})" if count.n else "-"


def _span(count: Count) -> str:
    return f"{100 * count.low:.1f} to {100 * count.high:.1f}" if count.n else "-"
