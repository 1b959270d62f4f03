"""Edits, random byte flips and cuts of a database, and how many the integrity check finds.

    python -m tests.tools.tampering [--flips 200] [--seed 0] [--db bench.db]

Each damaged copy must be found with a place, or give the same reports as the original. A report on
it must end in one sentence. Without `--db` a small database with a row in every table is made; only
that one is edited.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from bench.core.errors import BenchError
from bench.results.json_report import json_report
from bench.results.leaderboards import leaderboards
from bench.store import Store
from bench.store.damage import check_database, explained_damage
from tests.fixtures.sealed_database import EDITS, apply, fill

FOUND, NO_EFFECT, SILENT = "found", "no effect", "SILENT"
CUTS = 20


def reports(path: Path) -> str:
    """The reports of all leaderboards as text; one sentence where they cannot be read."""
    url = f"sqlite:///{path}"
    try:
        with explained_damage(url), Store.open(url, read_only=True) as store:
            known = leaderboards(store)
            found = [json_report(store, one.name, one.mode) for one in known]
            return json.dumps(found, sort_keys=True)
    except BenchError as error:
        return f"bench: {error}"


def outcome(path: Path, original: str) -> tuple[str, str]:
    """How the check judges a damaged copy, and the first place that it names."""
    try:
        after = reports(path)
        faults = check_database(f"sqlite:///{path}")
    except BenchError as error:
        return FOUND, str(error)
    if faults:
        return FOUND, faults[0].sentence
    return (NO_EFFECT if after == original else SILENT), ""


def flip(path: Path, generator: random.Random) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= generator.randint(1, 255)
    path.write_bytes(content)


def cut(path: Path, generator: random.Random) -> None:
    """Cut a file at a random place."""
    content = path.read_bytes()
    path.write_bytes(content[: generator.randrange(len(content))])


def cut_log(path: Path, generator: random.Random) -> None:
    """Leave a write-ahead log that ends in the middle of a page, as after a lost write."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE cells SET owner = 'cut'")
        connection.commit()
        log = path.with_name(f"{path.name}-wal")
        content = log.read_bytes()
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
    copy.replace(path)
    log.write_bytes(content[: generator.randrange(len(content))])


def trial(
    original: Path, times: int, seed: int, damage: Callable[[Path, random.Random], None]
) -> Counter[str]:
    """Damage copies of a database and count how the check judges them."""
    counts: Counter[str] = Counter()
    before = reports(original)
    for number in range(times):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(shutil.copy(original, Path(folder) / "bench.db"))
            damage(path, random.Random(f"{seed} {number}"))
            judged, _ = outcome(path, before)
        counts[judged] += 1
        if judged == SILENT:
            print(f"damage {number} of seed {seed} changes a report unseen", file=sys.stderr)
    return counts


def edit(statements: str, path: Path, _: random.Random) -> None:
    """Change a database by SQL."""
    apply(path, statements)


def edited(original: Path, seed: int) -> Counter[str]:
    """The counts for the edits by SQL, which are written for the rows of the small database."""
    trials = (trial(original, 1, seed, partial(edit, one.statements)) for one in EDITS)
    return sum(trials, Counter())


def single_file(path: Path) -> Path:
    """The database without a write-ahead log beside it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return path


def main() -> int:
    """Print the table of counts; 1 where a change of a report was not found."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--db", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original.db"
        if given.db is not None:
            with Store.open(f"sqlite:///{given.db.absolute()}", read_only=True) as store:
                os.environ["BENCH_ARTIFACTS"] = str(store.artifacts)  # for the copies, too
                store.backup(original)
        else:
            with Store.open(f"sqlite:///{original}") as store:
                fill(store)
        single_file(original)
        faults = check_database(f"sqlite:///{original}")
        if faults:
            # Every damaged copy would be found by the faults that were there before.
            print(f"{given.db} is damaged already: {faults[0].sentence}", file=sys.stderr)
            return 1
        edits = {} if given.db else {f"{len(EDITS)} edits by SQL": edited(original, given.seed)}
        rows = edits | {
            f"{given.flips} random bytes changed": trial(original, given.flips, given.seed, flip),
            f"{CUTS} files cut": trial(original, CUTS, given.seed, cut),
            f"{CUTS} write-ahead logs cut": trial(original, CUTS, given.seed, cut_log),
        }
    print(f"{'damage':<28}{FOUND:>8}{NO_EFFECT:>12}{SILENT:>8}")
    for name, counts in rows.items():
        print(f"{name:<28}{counts[FOUND]:>8}{counts[NO_EFFECT]:>12}{counts[SILENT]:>8}")
    return int(any(counts[SILENT] for counts in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
