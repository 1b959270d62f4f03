"""The tables of a device report in Markdown, and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.device_steps.report import STEPS

HIDDEN = {"margins", "spent", "each", "why", "calls"}
"""Fields of rows that are in the JSON alone."""


def markdown(content: Mapping[str, Any]) -> str:
    """All steps of a report: machine, a table for each step, and what was not run and why."""
    machine = content["machine"]
    name = machine.get("name", machine.get("device", "no device"))
    versions = f"torch {machine.get('torch', '?')}, Python {machine.get('python', '?')}"
    lines = [f"{name}, {versions}, {content['date']}, size {content['size']}.", ""]
    for step in STEPS:
        entry = content["steps"][step.key]
        lines += [f"**({step.key}) {entry['title']}**: {state_of(entry)}", ""]
        lines += table(entry["rows"])
        lines += [f"* Not run: {part['what']}: {part['reason']}." for part in entry["left_out"]]
        lines += [""] if entry["left_out"] else []
    return "\n".join(lines).rstrip() + "\n"


def state_of(entry: Mapping[str, Any]) -> str:
    """The state of a step with its message or its duration."""
    if entry["message"]:
        return f"{entry['state']}: {entry['message']}."
    return f"{entry['state']}, {entry['seconds']:.0f} s."


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table with the fields of all rows as columns, and an empty line after it."""
    if not rows:
        return []
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in HIDDEN]
    lines = [line([name.replace("_", " ") for name in names]), line(["---"] * len(names))]
    return [*lines, *(line([cell(row.get(name)) for name in names]) for row in rows), ""]


def line(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def cell(value: object) -> str:
    """A value as text: three digits of a number, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "/")


def summary(content: Mapping[str, Any]) -> str:
    """One line for each step."""
    lines = []
    for step in STEPS:
        entry = content["steps"][step.key]
        rows, left = len(entry["rows"]), len(entry["left_out"])
        lines.append(f"({step.key}) {step.title}: {state_of(entry)} {rows} rows, {left} left out.")
    return "\n".join(lines)
