"""Plays the hostile submissions and prints one line for each, then the totals.

    python -m tests.tools.hostile [--case PART] [--json OUT]

A case is contained where no process and no file is left, its memory stays within the limit, and the
honest row beside it has exactly the outcomes that it has alone. Exits with 1 where a case has
another result than the one that it declares. Run it as root and as an ordinary user: the sandbox is
started in different ways.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from bench.sandbox import process
from bench.sandbox.isolation import MIB, why_unavailable
from tests.sandbox.hostile.cases import CASES
from tests.sandbox.hostile.playing import LIMITS, MACHINE, Honest, Played, play


def main() -> int:
    """Play the chosen cases; 0 where each has the result that it must have."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.hostile", description=__doc__)
    parser.add_argument("--case", action="append", default=[], help="part of a name, or a family")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if why_unavailable():
        parser.error(f"there is no sandbox: {why_unavailable()}")
    honest = Honest()
    made: list[Played] = []
    for case in CASES:
        parts = options.case
        if not parts or any(part == case.family or part in case.name for part in parts):
            made.append(play(case, honest))
            print(line(made[-1]), flush=True)
    print(summary(made))
    if options.json:
        options.json.write_text(json.dumps([played.record() for played in made], indent=1))
    if process.SPARE_PROCESS.next is not None:
        process.SPARE_PROCESS.next.close()
    return int(any(played.faults for played in made))


def line(played: Played) -> str:
    """Whether a case is as it must be, its name, code, figures and message."""
    word = "ok" if not played.faults else "WRONG" if played.contained else "ESCAPED"
    faults = f"; {'; '.join(played.faults)}" if played.faults else ""
    return (
        f"{word:7} {played.family:10} {played.name:40} {played.code:20} {played.seconds:5.1f} s "
        f"{played.peak // MIB:5} MiB {played.machine // MIB:5} MiB  "
        f"{played.message or 'no message'}{faults}"
    )


def summary(made: list[Played]) -> str:
    """The totals of all cases."""
    peak = max((played.peak for played in made), default=0)
    machine = max((played.machine for played in made), default=0)
    user = "root" if os.getuid() == 0 else f"user {os.getuid()}"
    return (
        f"as {user}: {len(made)} cases; {sum(p.contained for p in made)} contained, "
        f"{sum(not p.faults for p in made)} with the expected result, "
        f"{sum(p.survivors for p in made)} processes and {sum(len(p.files) for p in made)} files "
        f"left, largest memory {peak // MIB} MiB under a limit of {LIMITS.memory // MIB} MiB "
        f"({machine // MIB} MiB more in use on the machine, at most {MACHINE // MIB} MiB), "
        f"{sum(p.seconds for p in made):.0f} s."
    )


if __name__ == "__main__":
    sys.exit(main())
