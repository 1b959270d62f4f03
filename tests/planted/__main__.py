"""Plays the planted defenses and attacks and prints one line for each.

    python -m tests.planted [--json OUT] [--only NAME] [--examples N] [--list LIST]

Exits with 1 where a dishonest one escapes or an honest one is accused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tests.planted.cases import Case
from tests.planted.first import FIRST
from tests.planted.held_out import HELD_OUT
from tests.planted.playing import Played, installed, load_registry, play


def main() -> int:
    """Play the chosen cases; 0 where all dishonest ones are caught and no honest one is accused."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", default=[], help="part of a name or group")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--list", choices=["first", "held-out", "all"], default="all")
    options = parser.parse_args()
    lists = {"first": FIRST, "held-out": HELD_OUT, "all": (*FIRST, *HELD_OUT)}
    cases = [case for case in lists[options.list] if chosen(case, options.only)]
    made: list[Played] = []
    with installed():
        registry = load_registry()
        for case in cases:
            made.append(play(case, registry, options.examples))
            print(line(made[-1]), flush=True)
    print(summary(made))
    if options.json:
        options.json.write_text(json.dumps([played.record() for played in made], indent=1))
    return int(any(played.caught is not bool(played.group) for played in made))


def chosen(case: Case, parts: list[str]) -> bool:
    """Whether a case is named on the command line; all are where none is."""
    return not parts or any(part in (case.name, case.group) or part in case.name for part in parts)


def line(played: Played) -> str:
    """Name, fault, truth, our figure, checks, verdict, and whether it was caught."""
    words = ("CAUGHT", "ESCAPES") if played.group else ("ACCUSED", "ok")
    word = words[0] if played.caught else words[1]
    checks = [*played.fired, *(f"contract {name}" for name in played.refused)]
    return (
        f"{word:8} {played.name.removeprefix('planted-'):20} {played.group or 'honest':24} "
        f"truth {played.truth:6.1%}  ours {played.ours:6.1%}  {played.verdict:8} "
        f"{played.seconds:5.1f} s  {played.what}; fired: {', '.join(checks) or 'nothing'}"
        f"{'; ' + ' '.join(played.notes) if played.notes else ''}"
    )


def summary(made: list[Played]) -> str:
    """The counts, and the checks that fired on dishonest ones."""
    bad, good = [p for p in made if p.group], [p for p in made if not p.group]
    fired = Counter(name for p in bad for name in (*p.fired, *p.refused) if " " not in name)
    return (
        f"{sum(p.caught for p in bad)} of {len(bad)} dishonest ones caught, "
        f"{sum(p.caught for p in good)} of {len(good)} honest ones accused; {len(fired)} different "
        f"checks fired: {', '.join(f'{name} {count}' for name, count in sorted(fired.items()))}; "
        f"{sum(p.seconds for p in made):.0f} CPU s."
    )


if __name__ == "__main__":
    sys.exit(main())
