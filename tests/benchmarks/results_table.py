"""Results as a table on the terminal and as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from tests.benchmarks.comparison import CountPair, TargetResult

COLUMNS = (
    "target", "what", "ours", "peer", "ratio", "threshold", "robust % ours/peer",
    "gradients ours/peer", "forwards ours/peer", "holds",
)  # fmt: skip


def render(rows: Iterable[TargetResult]) -> Table:
    """A table with one row per target; a note beside the target gives the reason of a miss."""
    table = Table(*COLUMNS, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*cells(row))
    return table


def cells(row: TargetResult) -> tuple[str, ...]:
    """The cells of one row as text."""
    return (
        row.target, f"{row.what} ({row.note})" if row.note else row.what,
        short(row.ours), short(row.peer), f"{row.ratio:.2f}",
        f"{'<=' if row.at_most else '>='} {row.threshold:g}",
        f"{percent(row.robust_ours)} / {percent(row.robust_peer)}",
        pair(row.gradients), pair(row.forwards), "yes" if row.holds else "no",
    )  # fmt: skip


def short(value: float | None) -> str:
    """A figure with three digits."""
    return "-" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}"


def pair(counts: CountPair) -> str:
    """Two counts with one decimal."""
    return f"{counts.ours:.1f} / {'-' if counts.peer is None else f'{counts.peer:.1f}'}"


def load(path: Path | None) -> dict[str, Any]:
    """The results in the file of an earlier, interrupted run; empty where there is none."""
    if path is None or not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def save(path: Path | None, rows: Mapping[str, Any]) -> None:
    """Write all results; called after each target, so that a run can be resumed."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine()} | {key: rows[key] for key in rows if key != "machine"}
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


def machine() -> dict[str, str]:
    """CPU features, torch version and number of threads."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    features = sorted(name for name, present in capabilities.items() if present is True)
    return {"features": " ".join(features), "torch": torch.__version__, "threads": "1"}


def result_of(content: Mapping[str, Any]) -> TargetResult:
    """The result from the JSON values of `TargetResult.fields`."""
    counts = {name: CountPair(**content[name]) for name in ("forwards", "gradients")}
    return TargetResult(**{**content, **counts})
