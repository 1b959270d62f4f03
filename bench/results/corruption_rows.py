"""Accuracy under each corruption and severity: figures beside a ranking, and never in a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.corruptions import CORRUPTION_SET, CORRUPTIONS, SEVERITIES, corruption_of
from bench.core.errors import BenchError
from bench.core.statistics import Count
from bench.results.report_tables import NOT_COUNTED, ReportCell, ReportTable, count_of
from bench.results.text_table import TextColumn

TITLE = "Accuracy under corruptions by severity, not adversarial"
MEAN = "mean"
"""Name of the row of the mean over all corruptions."""


@dataclass(frozen=True)
class CorruptionRow:
    """The accuracy of one defense under one corruption."""

    kind: str
    counts: tuple[Count | None, ...]
    """By severity from 0, the clean image: examples that are right on the clean image and on the
    corrupted one; None where it was not evaluated."""


def corruption_rows(clean: Count, robust: Mapping[str, Count | None]) -> list[CorruptionRow]:
    """The corruptions of which a severity was evaluated.

    `clean`: right examples without a corruption; `robust`: by attack, those that stay right.
    """
    found: dict[str, list[Count | None]] = {}
    for attack, count in robust.items():
        meant = corruption_of(attack)
        if meant is not None and count is not None:
            kind, severity = meant
            found.setdefault(kind, [clean, *([None] * SEVERITIES)])[severity] = count
    return [CorruptionRow(kind, tuple(found[kind])) for kind in CORRUPTIONS if kind in found]


def mean_shares(rows: Sequence[CorruptionRow]) -> tuple[float | None, ...]:
    """The mean accuracy over all corruptions by severity from 0; None where one is missing."""
    columns = zip(*(row.counts for row in rows), strict=True)
    return tuple(_mean(counts) if len(rows) == len(CORRUPTIONS) else None for counts in columns)


def _mean(counts: Sequence[Count | None]) -> float | None:
    shares = [count.k / count.n for count in counts if count is not None and count.n]
    return sum(shares) / len(shares) if len(shares) == len(counts) else None


def has_corruptions(report: Mapping[str, Any]) -> bool:
    """Whether a JSON report is of corrupted images."""
    return bool(report["threat"]["set"]["name"] == CORRUPTION_SET)


def corruption_table(report: Mapping[str, Any], *, means: bool = True) -> ReportTable:
    """A row for each defense and corruption of a JSON report; with `means` one for their mean.

    Raises BenchError where the report is of a threat model without corruptions.
    """
    if not has_corruptions(report):
        raise BenchError(
            f"{report['threat']['name']} has no corruptions; evaluate them with `bench run --threat"
            f" {report['threat']['dataset']}-corruptions` and name that threat model."
        )
    rows: list[tuple[ReportCell, ...]] = []
    for ranked in report["ranking"]:
        name = ranked["defense"]
        robust = {
            cell["attack"]: count_of(cell["robust"])
            for cell in report["matrix"]
            if cell["defense"] == name and cell["robust"]
        }
        found = corruption_rows(count_of(ranked["clean"]), robust)
        for row in found:
            counts = [NOT_COUNTED if count is None else count for count in row.counts]
            rows.append((name, row.kind, *counts))
        if means and any(share is not None for share in mean_shares(found)[1:]):
            rows.append((name, MEAN, *map(_share_text, mean_shares(found))))
    severities = (TextColumn(str(severity)) for severity in range(SEVERITIES + 1))
    columns = (TextColumn("Defense", "left"), TextColumn("Corruption", "left"), *severities)
    return ReportTable("corruptions", TITLE, columns, rows, 2, report["examples"]["n"])


def _share_text(share: float | None) -> str:
    return NOT_COUNTED if share is None else f"{100 * share:.1f} %"
