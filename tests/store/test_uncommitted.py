"""Exact images between their writing and their commit: those of killed writers are removed."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from bench.core.outcomes import Chunk
from bench.store import LeaseLostError, PlannedCell, Store, process_id
from bench.store.leftovers import ELSEWHERE_SECONDS
from bench.store.uncommitted import MARK, UncommittedFile
from tests.store.chunks import AWAY, leased, planned
from tests.store.workers import keep_tiny_examples, killed_at, tiny_cell, tiny_outcomes

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def exact_chunk(*items: int) -> Chunk:
    """Outcomes with exact images that follow from the items."""
    images = np.stack([np.full((1, 2, 2), item, np.float32) for item in items])
    return Chunk(tiny_outcomes(list(items)), 0.0, exact=(np.array(items, np.int32), images))


def image_files(store: Store) -> set[str]:
    """The digests of all files of images that lie in the folder."""
    return {path.stem for path in store.artifacts.rglob("*.safetensors")}


def named_by(store: Store) -> set[str]:
    """The digests of the files that rows name."""
    with store.reading() as connection:
        query = text("SELECT exact FROM chunks WHERE exact <> ''")
        return set(connection.execute(query).scalars())


def killed_while_recording(url: str, key: str, at: int, *, after_commit: bool = False) -> bool:
    """Whether a process that records a chunk is killed at a statement, or once it has committed."""

    def work() -> None:
        try:
            if after_commit:
                kill = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
                UncommittedFile.committed = kill  # type: ignore[method-assign]
            with Store.open(url) as store:
                store.record(leased(store, key, process_id()), exact_chunk(2, 3))
        except BaseException:
            os._exit(1)

    return killed_at(at, work)


@needs_fork
def test_images_of_a_writer_killed_at_any_statement_are_removed_unless_a_row_names_them(
    store: Store, url: str
) -> None:
    key, left, at = planned(store), 0, 1
    lease = leased(store, key)
    store.record(lease, exact_chunk(0, 1))
    kept = image_files(store)
    cell = tiny_cell(at, items=6)
    store.plan([PlannedCell(cell)])
    while killed_while_recording(url, cell.key, at):
        written = image_files(store) - kept
        left += len(written)
        assert named_by(store) == kept
        assert {path.stem for path in store.remove_leftovers()} == written
        assert image_files(store) == kept and not list(store.artifacts.rglob(f"*{MARK}"))
        at += 1
        cell = tiny_cell(at, items=6)
        store.plan([PlannedCell(cell)])
    assert left >= 3, "no kill came between the writing and the commit"
    assert image_files(store) == named_by(store) > kept
    assert store.remove_leftovers() == [] and store.check() == []
    assert not list(store.artifacts.rglob(f"*{MARK}"))


@needs_fork
def test_images_of_a_writer_killed_after_its_commit_stay(store: Store, url: str) -> None:
    key = planned(store)
    assert killed_while_recording(url, key, 10**6, after_commit=True)
    assert list(store.artifacts.rglob(f"*{MARK}"))
    assert store.remove_leftovers() == []
    assert image_files(store) == named_by(store) != set()
    assert not list(store.artifacts.rglob(f"*{MARK}")) and store.check() == []


def left_images(store: Store, items: tuple[int, ...], owner: str) -> Path:
    """Images that were written and not committed, marked by another process."""
    keep_tiny_examples(store)
    cell = tiny_cell(99, items=6)
    store.plan([PlannedCell(cell)])
    lost = replace(leased(store, cell.key), fence=0)
    with pytest.raises(LeaseLostError):
        store.record(lost, exact_chunk(*items))
    (mark,) = store.artifacts.rglob(f"*{MARK}")
    mark.rename(mark.with_name(mark.name.replace(process_id(), owner)))
    (path,) = mark.parent.glob("*.safetensors")
    return path


def test_images_of_a_running_process_and_of_other_hosts_stay(store: Store) -> None:
    path = left_images(store, (0, 1), process_id())
    assert store.remove_leftovers() == [] and path.exists()
    (mark,) = path.parent.glob(f"*{MARK}")
    theirs = mark.rename(mark.with_name(mark.name.replace(process_id(), AWAY)))
    assert store.remove_leftovers() == [] and path.exists()
    before = time.time() - ELSEWHERE_SECONDS - 60
    os.utime(theirs, (before, before))
    assert store.remove_leftovers() == [path] and not theirs.exists()


def test_images_that_another_database_writes_or_names_stay(
    store: Store, dead: str, tmp_path: Path
) -> None:
    path = left_images(store, (0, 1), dead)
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as other:
        assert other.artifacts == store.artifacts
        with UncommittedFile(path, "0" * 16) as writing:
            writing.begin()
            assert store.remove_leftovers() == [], "another process writes images just now"
            assert len(list(path.parent.glob(f"*{MARK}"))) == 2
        # Its writer has ended without a word on its commit: only its own database can tell.
        assert store.remove_leftovers() == [] and path.exists()
        assert list(path.parent.glob(f"*{MARK}")) == [writing.mark]
        writing.mark.unlink()
        path.with_name(f"{path.stem}.{other._identity}.{dead}{MARK}").touch()
        key = planned(other)
        other.record(leased(other, key), exact_chunk(0, 1))
        assert store.remove_leftovers() == other.remove_leftovers() == []
        assert other.check() == [] and path.exists()


def test_a_writer_waits_while_images_are_removed(
    store: Store, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_images(store, (4, 5), dead)
    lease, started = leased(store, planned(store)), threading.Event()

    def record() -> None:
        started.set()
        store.record(lease, exact_chunk(4, 5))

    def unlink(file: Path, missing_ok: bool = False) -> None:
        if file == path:
            writer.start()
            started.wait()
            time.sleep(0.3)
            assert path.exists() and named_by(store) == set()
        whole(file)

    writer, whole = threading.Thread(target=record), Path.unlink
    monkeypatch.setattr(Path, "unlink", unlink)
    assert store.remove_leftovers() == [path]
    monkeypatch.undo()
    writer.join()
    assert path.exists() and named_by(store) == {path.stem}


def test_an_altered_file_is_written_anew(store: Store, dead: str) -> None:
    path = left_images(store, (0, 1), dead)
    content, lease = path.read_bytes(), leased(store, planned(store))
    for damaged in (content[:-1], content[:-1] + b"x", b""):
        path.write_bytes(damaged)
        with pytest.raises(LeaseLostError):
            store.record(replace(lease, fence=0), exact_chunk(0, 1))
        assert path.read_bytes() == content


def test_a_chunk_without_outcomes_leaves_no_file(store: Store) -> None:
    key = planned(store)
    empty = (np.zeros(0, np.int32), np.zeros((0, 1, 2, 2), np.float32))
    store.record(leased(store, key), Chunk(tiny_outcomes([]), 1.0, exact=empty))
    assert image_files(store) == set()
