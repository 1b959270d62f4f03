"""CPU seconds and memory of the integrity check on a database of many outcomes.

    python -m tests.benchmarks.integrity_check [--outcomes 10000000] [--folder /tmp]

Cells of 10,000 items in chunks of 2,000 are written by the store's own functions.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.core.cells import Cell
from bench.core.machines import Machine
from bench.core.outcomes import OUTCOME_DTYPES, Chunk, Outcomes, Verdict
from bench.store import PlannedCell, Store, leases, outcomes

ITEMS, PER_CHUNK, PER_COMMIT = 10_000, 2_000, 20
OWNER = "benchmark@another-host"
CELL = Cell("linf", "plain", "pgd", "threat", "defense", "attack", "examples", ITEMS)


def columns(generator: np.random.Generator) -> Outcomes:
    """Outcomes [ITEMS] that compress about as well as real ones."""
    made = Outcomes._make(np.zeros(ITEMS, kind) for kind in OUTCOME_DTYPES)
    broken = generator.random(ITEMS) < 0.5
    return made._replace(
        item=np.arange(ITEMS, dtype=np.int32),
        verdict=np.where(broken, int(Verdict.BROKEN), int(Verdict.ROBUST)).astype(np.uint8),
        eight_bit=broken,
        distance=generator.random(ITEMS),
        label=generator.integers(0, 10, ITEMS).astype(np.int16),
        confidence=generator.random(ITEMS).astype(np.float32),
        forwards=generator.integers(1, 100, ITEMS).astype(np.int32),
        gradients=generator.integers(1, 100, ITEMS).astype(np.int32),
        loss=generator.random(ITEMS).astype(np.float32),
        true_confidence=generator.random(ITEMS).astype(np.float32),
    )


def write(url: str, total: int) -> None:
    """Fill a database with finished cells of `total` outcomes."""
    found = columns(np.random.default_rng(0))
    parts = [
        Chunk(
            Outcomes._make(column[start : start + PER_CHUNK] for column in found),
            0.5,
            machine=Machine("cpu", "AVX2", "2.15", 1),
        )
        for start in range(0, ITEMS, PER_CHUNK)
    ]
    cells = [replace(CELL, seed=number) for number in range(total // ITEMS)]
    with Store.open(url) as store:
        labels = np.zeros(ITEMS, np.int16)
        store.keep_examples("examples", "digits", ITEMS, labels, ("a", "b"), (1, 2, 2))
        store.plan(PlannedCell(cell) for cell in cells)
        for first in range(0, len(cells), PER_COMMIT):
            with store.writing() as connection:
                for cell in cells[first : first + PER_COMMIT]:
                    lease = leases.lease(connection, cell.key, OWNER)
                    assert lease is not None
                    for part in parts:
                        outcomes.append(connection, lease, part, "")
                    outcomes.finish(connection, lease)


def check(url: str) -> int:
    """Check a database and print faults, CPU seconds and the most memory in MiB."""
    before, started = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Store.open(url, read_only=True) as store:
        faults = len(store.check())
        checked = time.process_time()
        root = store.root()
        rooted = time.process_time()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{faults} faults, {checked - before:.2f} CPU s, root {root[:12]} in"
          f" {rooted - checked:.3f} CPU s, {most >> 10} MiB ({started >> 10} before)")  # fmt: skip
    return int(faults > 0)


def main() -> int:
    """Write a database and check it in a process of its own."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outcomes", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--check", help="check this database only")
    given = parser.parse_args()
    if given.check:
        return check(given.check)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "bench.db"
        began = time.process_time()
        write(f"sqlite:///{path}", given.outcomes)
        spent = time.process_time() - began
        print(f"{given.outcomes} outcomes, {path.stat().st_size >> 20} MiB, {spent:.1f} CPU s")
        command = [sys.executable, "-m", __spec__.name, "--check", f"sqlite:///{path}"]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
