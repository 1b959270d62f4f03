"""Kills, server restarts and full disks while real `bench run` commands evaluate a small matrix.

    python -m tests.tools.disturbed_matrix kills [--count 5] [--seed 0] [--examples 256]

Two commands evaluate two attacks against two defenses (digits, all images kept) in one database.
They are disturbed at random moments and started again until the matrix is complete; then its
outcomes, verdicts and root are compared with those of a command that was not disturbed. Where the
matrix is complete before `--count` disturbances, a new one begins. Other disturbances are
`restarts` of a PostgreSQL server and `full-disks`. `tests.tools.disturbances` does the same with
synthetic outcomes, a hundred times as fast.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from sqlalchemy import func, select

from bench.cli import main as bench_main
from bench.core.cells import CellState
from bench.core.outcomes import Outcomes
from bench.evaluation import launcher  # with torch, once for all commands
from bench.store import Store
from bench.store.images import files_of
from bench.store.tables import CHUNKS, EVIDENCE
from tests.store.servers import postgres_server, small_disk
from tests.tools.disturbances import Trial, at_artifacts, digest_of, fill_for_a_while, restart

THREAT, ATTACKS, DEFENSES = "digits-linf", ("fgsm", "pgd"), ("linear", "undefended")
COMMANDS = 2
LIMIT_SECONDS = 1800.0
MOST_DISTURBANCES = 20  # of one matrix, so that it ends within the limit
MOST_FAILURES = 20  # of commands that were not killed, in one matrix

Disturb = Callable[[list[int]], int]
"""Disturbs running commands; returns how often it did: a command may have ended before."""


def arguments(url: str, examples: int) -> list[str]:
    """The command that evaluates the matrix."""
    named = [word for name in ATTACKS for word in ("--attack", name)]
    named += [word for name in DEFENSES for word in ("--defense", name)]
    options = ["--batch", "16", "--keep-images", "all", "--workers", "1", "--device", "cpu"]
    place = url.removeprefix("sqlite:///")
    size = ["--examples", str(examples)]
    return ["bench", "run", "--db", place, "--threat", THREAT, *named, *size, *options]


def start(url: str, log: Path, examples: int) -> int:
    """Start a command in a process of its own, forked from this one; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = arguments(url, examples)
        bench_main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a command; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_whole(url: str, log: Path, examples: int) -> None:
    """Run a command to its end; raises RuntimeError where it fails."""
    code = ended(start(url, log, examples))
    if code:
        raise RuntimeError(f"bench run ended with code {code}: {log.read_text()[-2000:]}")


def kill_one(running: list[int]) -> int:
    """Kill -9 one of the commands; 0 where it had ended by itself."""
    victim = random.choice(running)
    os.kill(victim, signal.SIGKILL)
    running.remove(victim)
    return int(ended(victim) == -signal.SIGKILL)


@dataclass
class DisturbedMatrix:
    """One matrix with commands that are disturbed and started again until it is complete."""

    url: str
    log: Path
    examples: int
    seen: dict[str, Outcomes] = field(default_factory=dict)
    """Cell -> the outcomes that were committed when the database was last looked at."""
    lost: int = 0
    """Committed outcomes that were missing or changed later."""
    made: int = 0

    def play(self, disturb: Disturb, count: int) -> None:
        """Disturb up to `count` times, and go on until all commands have ended well."""
        running = [start(self.url, self.log, self.examples) for _ in range(COMMANDS)]
        done = failures = 0
        until = time.monotonic() + LIMIT_SECONDS
        while done < COMMANDS:
            if self.made < count:
                self._wait(running)
                self.made += disturb(running)
                self._look()
            else:
                time.sleep(0.1)
            for pid in list(running):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    running.remove(pid)
                    code = os.waitstatus_to_exitcode(status)
                    done, failures = done + (code == 0), failures + (code != 0)
            if failures > MOST_FAILURES or time.monotonic() > until:
                raise RuntimeError(f"the matrix is not completed: {self.log.read_text()[-2000:]}")
            while len(running) + done < COMMANDS:
                running.append(start(self.url, self.log, self.examples))
        self._look()

    def _wait(self, running: list[int]) -> None:
        """Wait for a random number of commits and a moment, or for a random time alone."""
        wanted = self._commits() + random.randint(1, 4)
        until = time.monotonic() + random.uniform(0, 3)
        if random.random() < 0.8:
            until += 60
        while time.monotonic() < until and self._commits() < wanted and all(map(runs, running)):
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.1))

    def _commits(self) -> int:
        """Committed chunks of outcomes and findings of diagnostics."""
        with Store.open(self.url, read_only=True) as store, store.reading() as connection:
            counts = [select(func.count()).select_from(table) for table in (CHUNKS, EVIDENCE)]
            return sum(connection.execute(count).scalar_one() for count in counts)

    def _look(self) -> None:
        """Compare what is committed with what was committed before."""
        with Store.open(self.url, read_only=True) as store:
            found = {row.key: store.outcomes(row.key) for row in store.cells()}
        self.lost += sum(missing(before, found.get(key)) for key, before in self.seen.items())
        self.seen = found


def runs(pid: int) -> bool:
    """Whether a command has not ended; it is not waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def missing(before: Outcomes, now: Outcomes | None) -> int:
    """Outcomes of a cell that are not there any more, or not as they were."""
    if now is None:
        return len(before.item)
    kept = np.isin(now.item, before.item)
    if not np.array_equal(now.item[kept], before.item):
        return len(before.item)
    changed = np.zeros(len(before.item), np.bool_)
    for name in Outcomes._fields:
        old, new = getattr(before, name), getattr(now, name)[kept]
        same = (old == new) | ((old != old) & (new != new))
        changed |= ~same
    return int(changed.sum())


def unnamed_files(store: Store) -> list[Path]:
    """Files of images that no row names."""
    with store.reading() as connection:
        named = set(files_of(connection))
    return [path for path in store.artifacts.rglob("*.safetensors") if path.stem not in named]


def judged(matrix: DisturbedMatrix, expected: tuple[str, str]) -> Trial:
    """Compare a complete matrix with that of an undisturbed command: its root and its digest."""
    with Store.open(matrix.url) as store:
        store.remove_leftovers()
        items = {row.key: store.finished_items(row.key) for row in store.cells()}
        whole = all(row.state is CellState.DONE for row in store.cells())
        same = (store.root(), digest_of(store)) == expected
        faults = [*store.check(), *unnamed_files(store)]
    if faults:
        print(*faults, *sorted(store.artifacts.rglob("*")), sep="\n")
    waits = matrix.log.read_text().count(" waits since ")
    return Trial(
        matrix.made, sum(map(len, items.values())), lost=matrix.lost,
        doubled=sum(len(known) - len(np.unique(known)) for known in items.values()),
        faults=len(faults), same=whole and same, waits=waits,
    )  # fmt: skip


def undisturbed(folder: Path, examples: int) -> tuple[Path, tuple[str, str]]:
    """A folder with canaries and weights alone, and (root, digest) of the matrix on a copy.

    Each folder has a database and the images that its rows name, and no others.
    """
    base, whole, log = folder / "base", folder / "whole", folder / "log"
    base.mkdir()
    with at_artifacts(base / "artifacts"):
        run_whole(f"sqlite:///{base / 'bench.db'}", log, 16)
    shutil.copytree(base, whole)
    with at_artifacts(whole / "artifacts"):
        run_whole(f"sqlite:///{whole / 'bench.db'}", log, examples)
        with Store.open(f"sqlite:///{whole / 'bench.db'}", read_only=True) as store:
            return base, (store.root(), digest_of(store))


def trial(kind: str, count: int, examples: int) -> list[Trial]:
    """Disturb matrices `count` times altogether; the result of each matrix."""
    found: list[Trial] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base, expected = undisturbed(folder, examples)
        while (left := count - sum(one.disturbances for one in found)) > 0:
            most = min(left, MOST_DISTURBANCES)
            found.append(_one_matrix(kind, most, examples, base, expected))
            print(kind, found[-1], flush=True)
    return found


def _one_matrix(
    kind: str, count: int, examples: int, base: Path, expected: tuple[str, str]
) -> Trial:
    """Disturb one matrix up to `count` times."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place, log, disturb = folder / "disturbed", folder / "log", kill_one
        if kind == "full-disks":
            disk = stack.enter_context(small_disk(place, "64m"))
            disturb = partial(_once, lambda running: fill_for_a_while(disk, running))
        else:
            place.mkdir()
        stack.enter_context(at_artifacts(place / "artifacts"))
        url = f"sqlite:///{place / 'bench.db'}"
        if kind == "restarts":
            server = stack.enter_context(postgres_server())
            url = server.url
            run_whole(url, log, 16)
            disturb = partial(_once, lambda running: restart(server, running))
        else:
            shutil.copytree(base, place, dirs_exist_ok=True)
        matrix = DisturbedMatrix(url, log, examples)
        matrix.play(disturb, count)
        return judged(matrix, expected)


def _once(work: Callable[[list[int]], None], running: list[int]) -> int:
    work(running)
    return 1


def main() -> None:
    """Run the trials and print their sum; exit code 1 where something was lost or changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["kills", "restarts", "full-disks"])
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    random.seed(chosen.seed)
    launcher.set_deterministic()
    began = time.time()
    found = trial(chosen.kind, chosen.count, chosen.examples)
    held = sum(one.holds for one in found)
    print(
        f"{sum(one.disturbances for one in found)} {chosen.kind}, {len(found)} matrices, {held} as"
        f" undisturbed, {sum(one.lost for one in found)} outcomes lost,"
        f" {sum(one.doubled for one in found)} doubled, {sum(one.faults for one in found)} faults,"
        f" {sum(one.waits for one in found)} waits, {time.time() - began:.0f} s"
    )
    raise SystemExit(held < len(found))


if __name__ == "__main__":
    main()
