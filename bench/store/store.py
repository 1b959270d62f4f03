"""The database as one object: each call is one transaction."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import Concatenate, ParamSpec, Self, TypeVar

import numpy as np
import numpy.typing as npt
from sqlalchemy.engine import URL, Connection, Engine

from bench.core.errors import StorageError, UnavailableError
from bench.core.outcomes import Chunk
from bench.store import attack_versions as versions
from bench.store import cells as cell_table
from bench.store import fits, integrity, leases, metadata, migrate, seals
from bench.store import images as image_files
from bench.store import outcomes as chunks
from bench.store import points as point_rows
from bench.store import replications as second_evaluations
from bench.store import weights as weights_table
from bench.store.database import (
    DamagedError,
    copy_file,
    explain_errors,
    file_identity,
    move_log_into_file,
    open_engine,
    reader_of,
    resolve_url,
    sqlite_file,
    transaction_number,
    url_text,
    was_committed,
)
from bench.store.faults import FILE, Fault
from bench.store.leftovers import remove_partial_files
from bench.store.published import is_published, published_database
from bench.store.records import Lease
from bench.store.tables import REVISIONS
from bench.store.uncommitted import UncommittedFile, remove_uncommitted_files
from bench.store.waiting import Waiting

P = ParamSpec("P")
R = TypeVar("R")

_READ_ONLY = "{} was opened for reading only: open it for writing."
_PUBLISHED = (
    "{} holds the published results, which are only read: copy it with `bench db backup`, and name"
    " the copy."
)


def _reading(
    function: Callable[Concatenate[Connection, P], R],
) -> Callable[Concatenate[Store, P], R]:
    """A method that calls the function in one transaction that only reads."""

    @wraps(function)
    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return store.read(lambda connection: function(connection, *args, **kwargs))

    return method


def _writing(
    function: Callable[Concatenate[Connection, P], R],
) -> Callable[Concatenate[Store, P], R]:
    """A method that calls the function in one transaction that may write."""

    @wraps(function)
    def method(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return store.write(lambda connection: function(connection, *args, **kwargs))

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
        self.waiting = Waiting()
        """How long calls wait for a database or disk that is unavailable; by default not at all."""
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that was opened; None before, and on a server."""

    @classmethod
    def open(
        cls, url: str | None = None, *, read_only: bool = False, waiting: Waiting | None = None
    ) -> Self:
        """Open, create or upgrade a database.

        `url` None means $BENCH_DB, else bench.db. `waiting` applies from here on. Raises
        UnavailableError where it is newer than this program, cannot be opened, is missing for a
        reader, or is published or lies on a network disk for a writer, BenchError for a wrong URL.
        """
        parsed = resolve_url(url)
        path = sqlite_file(parsed)
        if read_only and path is not None and not path.exists():
            raise UnavailableError(_nothing_at(parsed))
        if not read_only and is_published(parsed):
            raise UnavailableError(_PUBLISHED.format(url_text(parsed)))
        store = cls(parsed, open_engine(parsed, read_only=read_only), read_only=read_only)
        store.waiting = waiting or store.waiting
        try:
            store.waiting.retry(store._require_newest_revision)
            store._file = None if read_only or path is None else file_identity(path)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close every connection; what was written is then in the file itself."""
        if self._file is not None and self._file == file_identity(Path(self.url)):
            move_log_into_file(self._engine)
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that only reads."""
        self._require_same_file()
        with explain_errors(self._url), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction; raises UnavailableError where opened for reading only."""
        if self.read_only:
            raise UnavailableError(_READ_ONLY.format(self.url))
        self._require_same_file()
        with explain_errors(self._url), self._engine.begin() as connection:
            yield connection

    def read(self, function: Callable[[Connection], R]) -> R:
        """The result of a function of one reading transaction; waits as `waiting` says."""

        def attempt() -> R:
            with self.reading() as connection:
                return function(connection)

        return self.waiting.retry(attempt)

    def write(self, function: Callable[[Connection], R]) -> R:
        """The result of a function of one transaction, committed once; waits as `waiting` says.

        Where the answer to a commit is lost, the server is asked for the outcome of the
        transaction, so that nothing is written twice.
        """
        sent: list[tuple[int, R]] = []

        def attempt() -> R:
            if sent and self._was_committed(sent[-1][0]):
                return sent[-1][1]
            sent.clear()
            with self.writing() as connection:
                result = function(connection)
                number = transaction_number(connection)
                if number is not None:
                    sent.append((number, result))
            return result

        return self.waiting.retry(attempt)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Inside, an unavailable database or disk is an error at once."""
        limit, self.waiting.limit = self.waiting.limit, 0.0
        try:
            yield
        finally:
            self.waiting.limit = limit

    def _was_committed(self, number: int) -> bool:
        """Whether a transaction whose answer was lost is committed."""
        with self.reading() as connection:
            found = was_committed(connection, number)
        if found is None:
            raise StorageError(f"{self.url}: the last commit is not decided yet.", temporary=True)
        return found

    def _require_same_file(self) -> None:
        """Raise StorageError where the file was deleted or replaced since it was opened."""
        if self._file is None:
            return
        found = file_identity(Path(self.url))
        if found != self._file:
            what = "deleted" if found is None else "replaced by another file"
            raise StorageError(
                f"{self.url} was {what} while this program used it: nothing more is written; put"
                " the file with its results back, or name a new one, and run again."
            )

    clock = _reading(leases.clock)
    root = _reading(seals.root)

    # Cards, example sets, evidence, certificates and submissions.
    record_cards = _writing(metadata.record_cards)
    cards = _reading(metadata.select_cards)
    attack_versions = _reading(versions.select_attack_versions)
    older_attacks = _reading(versions.select_older_attacks)
    keep_examples = _writing(metadata.keep_examples)
    examples = _reading(metadata.select_examples)
    record_evidence = _writing(metadata.record_evidence)
    evidence = _reading(metadata.select_evidence)
    evidence_of = _reading(metadata.select_evidence_of)
    record_certificate = _writing(metadata.record_certificate)
    certificates = _reading(metadata.certificates)
    record_submission_state = _writing(metadata.record_submission_state)
    submissions = _reading(metadata.select_submissions)

    # Cells and tasks, and their leases.
    plan = _writing(cell_table.plan)
    cells = _reading(cell_table.list_cells)
    lease = _writing(leases.lease)
    heartbeat = _writing(leases.heartbeat)
    holder_of = _reading(leases.holder_of)
    fail = _writing(leases.fail)
    release = _writing(leases.release)
    lease_task = _writing(leases.lease_task)

    # Second evaluations of finished cells.
    insert_replication = _writing(second_evaluations.insert_replication)
    replications = _reading(second_evaluations.read_replications)
    replicated_outcomes = _reading(second_evaluations.replicated_outcomes)

    # Trained weights.
    insert_weights = _writing(weights_table.insert_weights)
    commit_training = _writing(weights_table.commit_training)
    weights_digest = _reading(weights_table.weights_digest)
    weights = _reading(weights_table.read_weights)

    # Outcomes and images of cells.
    finish = _writing(chunks.finish)
    finished_items = _reading(chunks.finished_items)
    outcomes = _reading(chunks.read_outcomes)
    machines = _reading(chunks.read_machines)
    images = _reading(image_files.read_images)
    points = _reading(point_rows.read_points)
    record_fit = _writing(fits.add_fit)
    fit = _reading(fits.read_fit)
    fits = _reading(fits.read_fits)

    def heartbeats(self, lease: Lease) -> Callable[[], None]:
        """A function that extends a lease, at most once in 5 seconds however often it is called."""
        last = time.monotonic()

        def beat() -> None:
            nonlocal last
            self.waiting.check_at_work()
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

    def remove_leftovers(self) -> list[Path]:
        """Remove what killed processes left: partial files, and images that no row names.

        Returns the removed files.
        """
        beside = sqlite_file(self._url)
        folders = [self.artifacts, *self.artifacts.glob("??"), *([beside.parent] if beside else [])]
        removed = remove_partial_files(folders)

        def named(digests: Collection[str]) -> set[str]:
            return self.write(lambda connection: image_files.named_files(connection, digests))

        return removed + remove_uncommitted_files(self.artifacts, self._identity, named)

    @property
    def _identity(self) -> str:
        """Tells this database from others that share its folder of images."""
        place = [self.url, *(self._file or ())[1:]]
        return hashlib.sha256(repr(place).encode()).hexdigest()[:16]

    def record(self, lease: Lease, chunk: Chunk) -> None:
        """Commit finished items with their images and extend the lease, all or nothing.

        Raises LeaseLostError where the lease is lost, and BenchError where an item is already
        recorded.
        """
        if chunk.exact is None or not len(chunk.outcomes.item):
            self.write(lambda connection: chunks.append(connection, lease, chunk, ""))
            return
        digest, content = image_files.packed_exact(chunk.exact)
        path = image_files.path_of(self.artifacts, digest)
        with UncommittedFile(path, self._identity) as file:
            self.waiting.retry(lambda: image_files.write_exact(file, content))
            self.write(lambda connection: chunks.append(connection, lease, chunk, digest))
            file.committed()

    def exact_images(
        self, key: str
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
        """Items [n] and exact images [n, C, H, W] of a cell in item order; None without any."""
        with self.reading() as connection:
            return image_files.read_exact(connection, self.artifacts, key)

    def check(self) -> list[Fault]:
        """Every fault of the database or its files, with its place; empty where there is none."""
        try:
            with self.reading() as connection:
                return integrity.problems(connection, self.artifacts)
        except DamagedError as damage:
            # Some damage makes the check itself fail; that is then what it reports.
            return [Fault(FILE, "", "", damage.cause)]

    def backup(self, path: Path | str) -> None:
        """Copy a SQLite database while others write.

        Raises UnavailableError for a database on a server, and where the file exists already or
        cannot be written.
        """
        source, target = sqlite_file(self._url), Path(path)
        if source is None:
            server = url_text(self._url.set(drivername="postgresql"))
            raise UnavailableError(
                f"{self.url} is on a server: back it up with"
                f" pg_dump --format=custom --file={target} '{server}'."
            )
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
    path, shipped = sqlite_file(url), published_database()
    published = (
        f", and `--db {quote(str(shipped))}` reads published results" if shipped.is_file() else ""
    )
    copied = (
        " If the file is a copy, its results may be in the -wal file beside the original:"
        " `bench db backup` copies a database in use."
        if path is not None and path.exists()
        else ""
    )
    return (
        f"there is no database at {url_text(url)}: `bench run` fills one, `bench submit` and"
        f" `bench db upgrade` create one{published}.{copied}"
    )
