"""The JSON report of a device run: written whole after each row, also when a process is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 1
WAITING, RUNNING, DONE, FAILED, NOT_RUN = "waiting", "running", "done", "failed", "not run"


class StepInfo(NamedTuple):
    """One step of a device run."""

    key: str
    title: str
    share: float
    """Of the time that is left for it and the later steps."""


STEPS = (
    StepInfo("a", "verdicts beside the CPU's", 0.15),
    StepInfo("b", "speed beside peers", 0.45),
    StepInfo("c", "slots and throughput", 0.12),
    StepInfo("d", "several workers and devices", 0.1),
    StepInfo("e", "training", 0.1),
    StepInfo("f", "a sandboxed defense", 0.08),
)
"""In order of worth."""


@dataclass
class Report:
    """The content of the report, and the file that holds it."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def begin(cls, path: Path, device: str, minutes: float, size: str) -> Report:
        """A report in which no step has run; writes the file."""
        steps = {
            step.key: {"title": step.title, "state": WAITING, "message": "", "seconds": 0.0,
                       "until": 0.0, "rows": [], "left_out": []}
            for step in STEPS
        }  # fmt: skip
        report = cls(path, {
            "schema": SCHEMA, "device": device, "size": size, "minutes": minutes,
            "date": time.strftime("%Y-%m-%d"), "complete": False, "machine": {}, "steps": steps,
        })  # fmt: skip
        report.save()
        return report

    @classmethod
    def load(cls, path: Path) -> Report:
        """The report in a file. Raises ValueError where it has another schema."""
        content: dict[str, Any] = json.loads(path.read_text())
        if content.get("schema") != SCHEMA:
            raise ValueError(
                f"{path} has schema {content.get('schema')!r}; {SCHEMA} was expected: "
                "write it with `python -m tests.benchmarks.device --json`."
            )
        return cls(path, content)

    def save(self) -> None:
        """Write the file: a whole new one takes the place of the old one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f"{self.path.name}.part")
        draft.write_text(json.dumps(self.content, indent=1) + "\n")
        draft.replace(self.path)

    def step(self, key: str) -> dict[str, Any]:
        """The entry of a step."""
        entry: dict[str, Any] = self.content["steps"][key]
        return entry

    def update(self, key: str, **values: Any) -> None:
        """Change the entry of a step and write the file."""
        self.step(key).update(values)
        self.save()

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row to a step and write the file."""
        self.step(key)["rows"].append(dict(row))
        self.save()

    def leave_out(self, key: str, what: str, reason: str) -> None:
        """Record a part of a step that was not run, and why."""
        self.step(key)["left_out"].append({"what": what, "reason": reason})
        self.save()

    def keys(self, *states: str) -> Iterator[str]:
        """The steps in one of these states, in order."""
        return (step.key for step in STEPS if self.step(step.key)["state"] in states)

    def stop(self, reason: str) -> None:
        """Record that steps which are not done were not run, or not to the end, and why."""
        for key in list(self.keys(WAITING, RUNNING)):
            state = FAILED if self.step(key)["state"] == RUNNING else NOT_RUN
            self.step(key).update(state=state, message=reason)
        self.content["complete"] = True
        self.save()


def time_limit(key: str, left: float) -> float:
    """Seconds for a step of `left` seconds for it and all later steps."""
    later = [step for step in STEPS if step.key >= key]
    return left * later[0].share / sum(step.share for step in later)
