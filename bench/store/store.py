"""The database as one object: each call is one transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import numpy.typing as npt
from sqlalchemy.engine import URL, Connection, Engine

from bench.core.errors import UnavailableError
from bench.core.outcomes import Chunk
from bench.store import cells as cell_table
from bench.store import images as image_files
from bench.store import integrity, leases, metadata, migrate
from bench.store import outcomes as chunks
from bench.store.database import (
    copy_file,
    explain_errors,
    open_engine,
    reader_of,
    resolve_url,
    sqlite_file,
    url_text,
)
from bench.store.records import Lease
from bench.store.tables import REVISIONS

P = ParamSpec("P")
R = TypeVar("R")

_READ_ONLY = "{} was opened for reading only: open it for writing."


def _reading(
    function: Callable[Concatenate[Connection, P], R],
) -> Callable[Concatenate[Store, P], R]:
    """A method that calls the function in one transaction that only reads."""

    @wraps(function)
    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with store.reading() as connection:
            return function(connection, *args, **kwargs)

    return method


def _writing(
    function: Callable[Concatenate[Connection, P], R],
) -> Callable[Concatenate[Store, P], R]:
    """A method that calls the function in one transaction that may write."""

    @wraps(function)
    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with store.writing() as connection:
            return function(connection, *args, **kwargs)

    return method


class Store:
    """A database of outcomes; threads may share it, each process opens its own.

    A method made by `_reading` or `_writing` takes the arguments of its function after the
    connection, which documents it.
    """

    def __init__(self, url: URL, engine: Engine, *, read_only: bool) -> None:
        self.url = url_text(url)
        """The database as text, without a password."""
        self.read_only = read_only
        self._url = url
        self._engine = engine
        self._reader = reader_of(engine)

    @classmethod
    def open(cls, url: str | None = None, *, read_only: bool = False) -> Self:
        """Open, create or upgrade a database.

        `url` None means $BENCH_DB, else bench.db. Raises UnavailableError where it is newer than
        this program, cannot be opened or is missing for a reader, BenchError for a wrong URL.
        """
        parsed = resolve_url(url)
        path = sqlite_file(parsed)
        if read_only and path is not None and not path.exists():
            raise UnavailableError(_nothing_at(parsed))
        store = cls(parsed, open_engine(parsed, read_only=read_only), read_only=read_only)
        try:
            store._require_newest_revision()
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

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that only reads."""
        with explain_errors(self._url), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction; raises UnavailableError where opened for reading only."""
        if self.read_only:
            raise UnavailableError(_READ_ONLY.format(self.url))
        with explain_errors(self._url), self._engine.begin() as connection:
            yield connection

    clock = _reading(leases.clock)

    # Cards, example sets, evidence, certificates and submissions.
    record_cards = _writing(metadata.record_cards)
    cards = _reading(metadata.select_cards)
    keep_examples = _writing(metadata.keep_examples)
    examples = _reading(metadata.select_examples)
    record_evidence = _writing(metadata.record_evidence)
    evidence = _reading(metadata.select_evidence)
    record_certificate = _writing(metadata.record_certificate)
    certificates = _reading(metadata.certificates)
    record_submission_state = _writing(metadata.record_submission_state)
    submissions = _reading(metadata.select_submissions)

    # Cells and tasks, and their leases.
    plan = _writing(cell_table.plan)
    cells = _reading(cell_table.list_cells)
    lease = _writing(leases.lease)
    heartbeat = _writing(leases.heartbeat)
    fail = _writing(leases.fail)
    release = _writing(leases.release)
    lease_task = _writing(leases.lease_task)
    finish_task = _writing(leases.finish_task)
    task_done = _reading(leases.task_done)

    # Outcomes and images of cells.
    finish = _writing(chunks.finish)
    finished_items = _reading(chunks.finished_items)
    outcomes = _reading(chunks.read_outcomes)
    images = _reading(image_files.read_images)

    def heartbeats(self, lease: Lease) -> Callable[[], None]:
        """A function that extends a lease, at most once in 5 seconds however often it is called."""
        last = time.monotonic()

        def beat() -> None:
            nonlocal last
            if time.monotonic() - last > leases.HEARTBEAT_SECONDS:
                self.heartbeat(lease)
                last = time.monotonic()

        return beat

    @property
    def artifacts(self) -> Path:
        """The folder of exact images: $BENCH_ARTIFACTS, else beside the file, else ./artifacts."""
        beside = sqlite_file(self._url)
        default = beside.parent / "artifacts" if beside else Path("artifacts")
        return Path(os.environ.get("BENCH_ARTIFACTS") or default)

    def record(self, lease: Lease, chunk: Chunk) -> None:
        """Commit finished items with their images and extend the lease, all or nothing.

        Raises LeaseLostError where the lease is lost, and BenchError where an item is already
        recorded.
        """
        exact = image_files.write_exact(self.artifacts, chunk.exact) if chunk.exact else ""
        with self.writing() as connection:
            chunks.append(connection, lease, chunk, exact)

    def exact_images(
        self, key: str
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
        """Items [n] and exact images [n, C, H, W] of a cell in item order; None without any."""
        with self.reading() as connection:
            return image_files.read_exact(connection, self.artifacts, key)

    def check(self) -> list[str]:
        """One sentence for each fault of the database or its files; empty where there is none."""
        try:
            with self.reading() as connection:
                return integrity.problems(connection, self.artifacts)
        except UnavailableError as damage:
            # Some damage makes the check itself fail; that is then what it reports.
            return [str(damage)]

    def backup(self, path: Path | str) -> None:
        """Copy a SQLite database while others write.

        Raises UnavailableError for a database on a server, and where the file exists already or
        cannot be written.
        """
        source, target = sqlite_file(self._url), Path(path)
        if source is None:
            raise UnavailableError(f"{self.url} is on a server: back it up with pg_dump.")
        if target.exists():
            raise UnavailableError(f"{target} exists already: name a new file for the backup.")
        copy_file(source, target)

    def upgrade(self) -> Path | None:
        """Upgrade the tables to the newest revision; returns the backup made before, if any.

        Raises UnavailableError where the database was opened for reading only.
        """
        if self.read_only:
            raise UnavailableError(_READ_ONLY.format(self.url))
        with explain_errors(self._url):
            return migrate.upgrade(self._url)

    def _require_newest_revision(self) -> None:
        with explain_errors(self._url), self._reader.begin() as connection:
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


def _nothing_at(url: URL) -> str:
    return (
        f"there is no database at {url_text(url)}: `bench run` fills one, `bench submit` and"
        " `bench db upgrade` create one."
    )
