"""Kills, server restarts and full disks during a run: no outcome is lost, none is doubled.

`python -m tests.tools.disturbances kills --count 200` keeps two workers that record outcomes and
exact images, disturbs them, and compares the database with that of workers that were not disturbed.
Other disturbances are `restarts` of a PostgreSQL server and `full-disks`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.core.cells import CellState
from bench.core.outcomes import Chunk
from bench.store import LeaseLostError, PlannedCell, Store, process_id, waiting
from bench.store.waiting import Waiting
from tests.store.servers import PostgresServer, SmallDisk, postgres_server, small_disk
from tests.store.workers import CHUNK, keep_tiny_examples, tiny_cell, tiny_outcomes

ITEMS = 80
LIMIT_SECONDS = 600.0
SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Trial:
    """What is left after the disturbances."""

    disturbances: int
    acknowledged: int
    """Outcomes whose commit a worker was told of."""
    lost: int
    """Acknowledged outcomes that the database does not hold."""
    doubled: int
    """Outcomes that the database holds twice, or that were evaluated after their commit."""
    faults: int
    """What the integrity check finds."""
    same: bool
    """Whether every cell is done with the outcomes and images of an undisturbed run."""
    waits: int
    """Messages about waits."""

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, doubled or changed."""
        return self.same and self.lost == self.doubled == self.faults == 0


def images_of(key: str, items: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Images [n, C, H, W] that follow from cell and item."""
    seeds = [int(hashlib.sha256(f"{key} {item}".encode()).hexdigest()[:8], 16) for item in items]
    return np.stack([np.random.default_rng(s).random(SHAPE, dtype=np.float32) for s in seeds])


def work(url: str, log: Path, pause: float) -> None:
    """Record the open cells; the log gets `play` before and `ack` after each commit."""
    journal = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    waiting.RETRY_SECONDS = 0.1

    def tell(text: str) -> None:
        os.write(journal, f"wait {text}\n".encode())

    with Store.open(url, waiting=Waiting(LIMIT_SECONDS, tell)) as store:
        while left := [row for row in store.cells() if row.state != CellState.DONE]:
            store.plan(PlannedCell(row.cell) for row in left if row.state == CellState.FAILED)
            random.shuffle(left)
            for row in left:
                try:
                    _record(store, row.key, int(row.cell.attack[1:]), journal, pause)
                except LeaseLostError:
                    os.write(journal, f"lost {row.key}\n".encode())


def _record(store: Store, key: str, salt: int, journal: int, pause: float) -> None:
    lease = store.lease(key, process_id())
    if lease is None:
        return
    known = set(store.finished_items(key).tolist())
    left = [item for item in range(ITEMS) if item not in known]
    for start in range(0, len(left), CHUNK):
        part = left[start : start + CHUNK]
        entry = f"{key} {' '.join(map(str, part))}\n"
        os.write(journal, f"play {entry}".encode())
        time.sleep(pause)
        exact = (np.array(part, np.int32), images_of(key, part))
        store.record(lease, Chunk(tiny_outcomes(part, salt), 0.0, exact=exact))
        os.write(journal, f"ack {entry}".encode())
    store.finish(lease)


def forked(url: str, log: Path, pause: float) -> int:
    """Start a worker; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    random.seed(os.getpid())
    try:
        work(url, log, pause)
    except BaseException as error:
        with log.open("a") as file:
            file.write(f"end {type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def run_disturbed(
    url: str, log: Path, disturb: Callable[[list[int]], None], *, count: int, pause: float
) -> int:
    """Keep two workers until they have finished; `disturb` gets them. Returns the disturbances."""
    running, made = [forked(url, log, pause) for _ in range(2)], 0
    until = time.monotonic() + LIMIT_SECONDS
    while running and time.monotonic() < until:
        if made < count:
            time.sleep(random.uniform(0.01, 0.06))
            disturb(running)
            made += 1
        else:
            time.sleep(0.1)
        for place, pid in enumerate(list(running)):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended and os.waitstatus_to_exitcode(status) == 0:
                running.remove(pid)
            elif ended:
                running[place] = forked(url, log, pause)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return made


def kill_one(running: list[int]) -> None:
    """Kill -9 one of the workers."""
    os.kill(random.choice(running), signal.SIGKILL)


def restart(server: PostgresServer, running: list[int]) -> None:
    """Restart the server, in every second case by a crash, and let the workers go on a little."""
    server.stop(random.choice(["fast", "immediate"]))
    time.sleep(random.uniform(0, 0.5))
    server.start()
    time.sleep(random.uniform(0.1, 0.4))


def fill_for_a_while(disk: SmallDisk, running: list[int]) -> None:
    """Fill the disk, and free it after a while."""
    disk.fill()
    time.sleep(random.uniform(0.2, 0.6))
    disk.free()
    time.sleep(random.uniform(0.05, 0.3))


def digest_of(store: Store) -> str:
    """A digest of states, outcomes and exact images of all cells, however they were recorded."""
    whole = hashlib.sha256()
    for row in sorted(store.cells(), key=lambda row: row.key):
        whole.update(f"{row.key} {row.state} {row.items_done} {row.figures}".encode())
        for column in store.outcomes(row.key):
            whole.update(column.tobytes())
        item, adv = store.exact_images(row.key) or (np.zeros(0), np.zeros(0))
        whole.update(item.tobytes() + adv.tobytes())
    return whole.hexdigest()


def plan_cells(url: str, cells: int) -> None:
    """Plan the cells that the workers evaluate."""
    with Store.open(url) as store:
        keep_tiny_examples(store)
        store.plan(PlannedCell(tiny_cell(number, ITEMS)) for number in range(cells))


def undisturbed(folder: Path, cells: int) -> str:
    """The digest of a run without disturbances."""
    url = f"sqlite:///{folder / 'undisturbed' / 'bench.db'}"
    (folder / "undisturbed").mkdir()
    plan_cells(url, cells)
    with at_artifacts(folder / "undisturbed" / "artifacts"):
        work(url, folder / "undisturbed" / "log", 0.0)
        with Store.open(url) as store:
            return digest_of(store)


@contextmanager
def at_artifacts(folder: Path) -> Iterator[None]:
    """The folder of exact images inside."""
    before = os.environ.get("BENCH_ARTIFACTS")
    os.environ["BENCH_ARTIFACTS"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["BENCH_ARTIFACTS"]
        else:
            os.environ["BENCH_ARTIFACTS"] = before


def judged(url: str, log: Path, made: int, expected: str) -> Trial:
    """Compare a database with the log of its workers and with an undisturbed run."""
    acknowledged: set[tuple[str, str]] = set()
    again = waits = 0
    for line in log.read_text().splitlines():
        event, _, rest = line.partition(" ")
        key, *items = rest.split()
        pairs = {(key, item) for item in items}
        again += len(pairs & acknowledged) if event == "play" else 0
        acknowledged |= pairs if event == "ack" else set()
        waits += event == "wait"
    with Store.open(url) as store:
        found = [
            (row.key, str(item))
            for row in store.cells()
            for item in store.finished_items(row.key).tolist()
        ]
        faults, same = len(store.check()), digest_of(store) == expected
    return Trial(
        made, len(acknowledged), lost=len(acknowledged - set(found)),
        doubled=len(found) - len(set(found)) + again, faults=faults, same=same, waits=waits,
    )  # fmt: skip


def trial(kind: str, count: int, cells: int, pause: float) -> Trial:
    """Disturb a run `count` times."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        expected, place, log = undisturbed(folder, cells), folder / "disturbed", folder / "log"
        disturb: Callable[[list[int]], None] = kill_one
        if kind == "full-disks":
            disk = stack.enter_context(small_disk(place, "48m"))
            disturb = lambda running: fill_for_a_while(disk, running)  # noqa: E731
        else:
            place.mkdir()
        url = f"sqlite:///{place / 'bench.db'}"
        if kind == "restarts":
            server = stack.enter_context(postgres_server())
            url = server.url
            disturb = lambda running: restart(server, running)  # noqa: E731
        plan_cells(url, cells)
        stack.enter_context(at_artifacts(place / "artifacts"))
        made = run_disturbed(url, log, disturb, count=count, pause=pause)
        return judged(url, log, made, expected)


def main() -> None:
    """Run one trial and print what is left; exit code 1 where something was lost or changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["kills", "restarts", "full-disks"])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.02, help="Seconds of work in each chunk.")
    chosen = parser.parse_args()
    found = trial(chosen.kind, chosen.count, chosen.cells, chosen.pause)
    print(chosen.kind, found)
    raise SystemExit(not found.holds)


if __name__ == "__main__":
    main()
