"""The table on the screen and the JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from tests.benchmarks.row import Both, Row

COLUMNS = (
    "target", "what", "ours", "peer", "ratio", "bar", "robust % ours/peer",
    "gradients ours/peer", "forwards ours/peer", "holds",
)  # fmt: skip


def drawn(rows: Iterable[Row]) -> Table:
    """One line a target; what does not hold says why below its name."""
    table = Table(*COLUMNS, box=box.MARKDOWN)
    for row in rows:
        table.add_row(*cells(row))
    return table


def cells(row: Row) -> tuple[str, ...]:
    """A row in words."""
    return (
        row.target, f"{row.what} ({row.note})" if row.note else row.what,
        short(row.ours), short(row.peer), f"{row.ratio:.2f}",
        f"{'<=' if row.at_most else '>='} {row.bar:g}",
        f"{percent(row.robust_ours)} / {percent(row.robust_peer)}",
        pair(row.gradients), pair(row.forwards), "yes" if row.holds else "no",
    )  # fmt: skip


def short(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Of all examples."""
    return "-" if value is None else f"{100 * value:.1f}"


def pair(counts: Both) -> str:
    """Ours and theirs."""
    return f"{counts.ours:.1f} / {'-' if counts.peer is None else f'{counts.peer:.1f}'}"


def load(path: Path | None) -> dict[str, Any]:
    """What an earlier, interrupted run has measured; empty without."""
    if path is None or not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def save(path: Path | None, rows: Mapping[str, Any]) -> None:
    """Written after each target, so that nothing is measured twice."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine()} | {key: rows[key] for key in rows if key != "machine"}
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(whole, indent=1) + "\n")
    draft.replace(path)


def machine() -> dict[str, str]:
    """By its features alone."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    features = sorted(name for name, there in capabilities.items() if there is True)
    return {"features": " ".join(features), "torch": torch.__version__, "threads": "1"}


def row_of(content: Mapping[str, Any]) -> Row:
    """What `Row.fields` made."""
    counts = {name: Both(**content[name]) for name in ("forwards", "gradients")}
    return Row(**{**content, **counts})
