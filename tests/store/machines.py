"""A machine of a test: a process with arithmetic and a cache folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.evaluation.launcher import MatrixRun
from bench.evaluation.plan import Selection
from bench.evaluation.reproduce import reproduce
from bench.store import Store

EXAMPLES = 64
"""Enough for PGD to break another one on a processor without vector instructions."""


def on_machine(folder: Path, capability: str, command: str, url: str, *rest: str) -> Any:
    """What a command of this program prints on a machine, as JSON.

    `capability` is one of torch's, such as `default`; empty: the best one of this processor.
    """
    own = {"XDG_CACHE_HOME": str(folder), "ATEN_CPU_CAPABILITY": capability}
    environment = {k: v for k, v in (os.environ | own).items() if v}
    program = [sys.executable, "-m", "tests.store.machines", command, url, *rest]
    told = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def run(url: str, defense: str, attacks: list[str]) -> list[str]:
    """Evaluate attacks against a defense; the machine classes of its cells."""
    selection = Selection(("digits-linf",), (defense,), tuple(attacks), examples=EXAMPLES)
    assert MatrixRun(selection, url, quiet=True, certify="none").run() == 0
    with Store.open(url, read_only=True) as store:
        found = store.machines(row.key for row in store.cells())
    return sorted({machine.cpu_capability for machines in found.values() for machine in machines})


def reproduce_until_one_differs(url: str) -> list[dict[str, Any]]:
    """Reproduce one finished cell after the other, until a verdict differs."""
    with Store.open(url, read_only=True) as store:
        rows = [row for row in store.cells() if row.figures and row.cell.attack != "clean"]
    results: list[dict[str, Any]] = []
    for row in rows:
        results.append(dict(reproduce(row.key, url, "cpu", allow_unsandboxed=False)))
        if not results[-1]["same"]:
            break
    return results


if __name__ == "__main__":
    command, url, *rest = sys.argv[1:]
    found = run(url, rest[0], rest[1:]) if command == "run" else reproduce_until_one_differs(url)
    print(json.dumps(found))
