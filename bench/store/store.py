"""The one object that the other rooms hold: every call is one transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from sqlalchemy.engine import URL, Connection, Engine

from bench.core.cards import Card, CardT
from bench.core.cells import Failure
from bench.core.errors import UnavailableError
from bench.core.outcomes import Chunk, KeptImage, Outcomes
from bench.store import cells, images, integrity, leases, metadata, migrate, outcomes
from bench.store.database import copy_file, file_of, open_engine, reader_of, resolve, shown, spoken
from bench.store.records import (
    CellRow,
    CertificateRow,
    EvidenceRow,
    ExamplesRow,
    Lease,
    PlannedCell,
    SubmissionRow,
)
from bench.store.tables import REVISIONS

_ONLY_READING = "{} was opened for reading only: open it for writing."


class Store:
    """A database of verdicts; safe to share between threads, opened anew in each process."""

    def __init__(self, url: URL, engine: Engine, *, read_only: bool) -> None:
        self.url = shown(url)
        """The database as text, without a password."""
        self.read_only = read_only
        self._url = url
        self._engine = engine
        self._reader = reader_of(engine)

    @classmethod
    def open(cls, url: str | None = None, *, read_only: bool = False) -> Self:
        """Open, create or upgrade a database.

        `url` None means $BENCH_DB, else bench.db in the current folder. UnavailableError where the
        database is newer than this program, cannot be opened, or is missing for a reader.
        """
        parsed = resolve(url)
        path = file_of(parsed)
        if read_only and path is not None and not path.exists():
            raise UnavailableError(_nothing_at(parsed))
        store = cls(parsed, open_engine(parsed, read_only=read_only), read_only=read_only)
        try:
            store._become_current()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def artifacts(self) -> Path:
        """The folder of exact images: $BENCH_ARTIFACTS, else beside the file, else ./artifacts."""
        beside = file_of(self._url)
        default = beside.parent / "artifacts" if beside else Path("artifacts")
        return Path(os.environ.get("BENCH_ARTIFACTS") or default)

    # What the plugins declare.

    def declare(self, cards: Iterable[Card]) -> None:
        """Make these the current cards of their plugins, by kind and name."""
        with self._write() as connection:
            metadata.declare(connection, cards)

    def cards(self, model: type[CardT]) -> list[CardT]:
        """The current cards of one kind, given by its model, by name."""
        with self._read() as connection:
            return metadata.cards(connection, model)

    def keep_examples(
        self,
        digest: str,
        dataset: str,
        n: int,
        labels: npt.NDArray[np.int16],
        classes: tuple[str, ...],
        shape: tuple[int, ...],
    ) -> None:
        """Keep the labels [n] of an example set once; `shape` is [C, H, W]."""
        row = ExamplesRow(digest, dataset, n, labels, classes, shape)
        with self._write() as connection:
            metadata.keep_examples(connection, row)

    def examples(self, digest: str) -> ExamplesRow:
        """An example set by its digest; BenchError where it is unknown."""
        with self._read() as connection:
            return metadata.examples(connection, digest)

    # Cells and who plays them.

    def clock(self) -> float:
        """Unix time as cells are stamped with it: the server's, where there is one."""
        with self._read() as connection:
            return leases.now(connection)

    def plan(self, planned: Iterable[PlannedCell], *, since: float | None = None) -> None:
        """Add cells by their key, once. Running and done cells only take over new names.

        What was skipped or failed is open again, unless it failed after `since` (by the clock).
        """
        with self._write() as connection:
            cells.plan(connection, planned, leases.now(connection), since)

    def lease(self, key: str, owner: str) -> Lease | None:
        """The right to play a cell for 60 seconds and on; None where it is not open.

        Open is what is missing, or running with an owner who is dead on this host, or late and
        not seen to live there.
        """
        with self._write() as connection:
            return leases.take_cell(connection, key, owner)

    def heartbeat(self, lease: Lease) -> None:
        """Extend a lease; LeaseLostError where somebody else has taken over."""
        with self._write() as connection:
            leases.extend(connection, lease, {})

    def beats(self, lease: Lease) -> Callable[[], None]:
        """Extends a lease now and then, however often it is called."""
        last = time.monotonic()

        def beat() -> None:
            nonlocal last
            if time.monotonic() - last > leases.BEAT:
                self.heartbeat(lease)
                last = time.monotonic()

        return beat

    def record(self, lease: Lease, chunk: Chunk) -> None:
        """Commit finished items with their images and extend the lease, all or nothing.

        LeaseLostError where the lease is lost, BenchError where an item was recorded before.
        """
        exact = images.write_exact(self.artifacts, chunk.exact) if chunk.exact else ""
        with self._write() as connection:
            outcomes.append(connection, lease, chunk, exact)

    def finish(self, lease: Lease) -> None:
        """Close a cell with its figures; BenchError while outcomes are missing."""
        with self._write() as connection:
            outcomes.finish(connection, lease)

    def fail(self, lease: Lease, failure: Failure) -> None:
        """Close a cell or task without a figure; planned again, it is open again."""
        with self._write() as connection:
            leases.fail(connection, lease, failure)

    def release(self, lease: Lease) -> None:
        """Give an unfinished cell or task back at once; what was recorded stays."""
        with self._write() as connection:
            leases.give_back(connection, lease)

    def lease_task(self, name: str, owner: str) -> Lease | None:
        """The same lease for work without outcomes; None where it is done or held."""
        with self._write() as connection:
            return leases.take_task(connection, name, owner)

    def finish_task(self, lease: Lease) -> None:
        """Mark a task as done."""
        with self._write() as connection:
            leases.done(connection, lease, {})

    def task_done(self, name: str) -> bool:
        """Whether a task was finished."""
        with self._read() as connection:
            return leases.task_done(connection, name)

    # What was found.

    def finished_items(self, key: str) -> npt.NDArray[np.int32]:
        """The items of a cell that need not be played again, in rising order."""
        with self._read() as connection:
            return outcomes.items(connection, key)

    def outcomes(self, key: str) -> Outcomes:
        """What was recorded for a cell, in item order; empty columns where nothing was."""
        with self._read() as connection:
            return outcomes.outcomes(connection, key)

    def cells(
        self, threat: str | None = None, examples: str | None = None, mode: str | None = None
    ) -> list[CellRow]:
        """The cells with this threat name, examples digest and mode; None matches all."""
        with self._read() as connection:
            return cells.listed(connection, threat, examples, mode)

    def images(self, key: str) -> list[KeptImage]:
        """The sample kept for the pages, in item order."""
        with self._read() as connection:
            return images.kept(connection, key)

    def exact_images(
        self, key: str
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
        """Items and exact images [n, C, H, W] in item order; None where none were kept."""
        with self._read() as connection:
            return images.read_exact(connection, self.artifacts, key)

    def note(self, defense: str, defense_digest: str, examples: str, found: EvidenceRow) -> None:
        """Keep what a diagnostic found on a defense; its newest finding stands."""
        with self._write() as connection:
            metadata.note(connection, defense, defense_digest, examples, found)

    def evidence(self, defense_digest: str, examples: str) -> list[EvidenceRow]:
        """What the diagnostics found on a defense, by their names."""
        with self._read() as connection:
            return metadata.evidence(connection, defense_digest, examples)

    def certify(self, threat_id: str, examples: str, found: CertificateRow) -> None:
        """Keep for which examples of a board a certifier has a proof; its newest answer stands."""
        with self._write() as connection:
            metadata.certify(connection, threat_id, examples, found)

    def certificates(self, threat_id: str, examples: str) -> list[CertificateRow]:
        """All certificates of a board, by defense and certifier."""
        with self._read() as connection:
            return metadata.certificates(connection, threat_id, examples)

    def submission(self, name: str, state: str, reason: str = "") -> None:
        """Append a submission's new state, with the time."""
        with self._write() as connection:
            metadata.step(connection, name, state, reason, leases.now(connection))

    def submissions(self) -> list[SubmissionRow]:
        """Every submission as it stands, the most recently changed first."""
        with self._read() as connection:
            return metadata.submissions(connection)

    # The database itself.

    def check(self) -> list[str]:
        """One sentence for each broken promise of the database or its files."""
        try:
            with self._read() as connection:
                return integrity.problems(connection, self.artifacts)
        except UnavailableError as damage:
            # Some damage ends the check itself; then that is what it found.
            return [str(damage)]

    def backup(self, path: Path | str) -> None:
        """Copy the database while others write; SQLite only, never over an existing file."""
        source, target = file_of(self._url), Path(path)
        if source is None:
            raise UnavailableError(f"{self.url} is on a server: back it up with pg_dump.")
        if target.exists():
            raise UnavailableError(f"{target} is there already: name a new file for the backup.")
        copy_file(source, target)

    def upgrade(self) -> Path | None:
        """Bring the tables to the newest revision; returns the backup made before, if any."""
        if self.read_only:
            raise UnavailableError(_ONLY_READING.format(self.url))
        with spoken(self._url):
            return migrate.upgrade(self._url)

    def _become_current(self) -> None:
        with spoken(self._url), self._reader.begin() as connection:
            found = migrate.found_in(connection, self._url)
        migrate.refuse_newer(self._url, found)
        if found == REVISIONS[-1]:
            return
        if not self.read_only:
            self.upgrade()
        elif found is None:
            raise UnavailableError(_nothing_at(self._url))
        else:
            raise UnavailableError(
                f"{self.url} has revision {found}, this program reads {REVISIONS[-1]}: run"
                " `bench db upgrade`."
            )

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self.read_only:
            raise UnavailableError(_ONLY_READING.format(self.url))
        with spoken(self._url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with spoken(self._url), self._reader.begin() as connection:
            yield connection


def _nothing_at(url: URL) -> str:
    return (
        f"there is no database at {shown(url)}: `bench run` fills one, `bench submit` and"
        " `bench db upgrade` create one."
    )
