"""Power loss and clocks that jump: no acknowledged outcome is lost, none is recorded twice.

A commit is acknowledged once its bytes are on disk (`synchronous=FULL`, tests/store/test_database).
What is written after that may be lost in any part, so a power loss is the files as they were at the
last acknowledged commit, with any part of the later bytes of the write-ahead log.
"""

from __future__ import annotations

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.core.cells import CellState
from bench.store import LeaseLostError, PlannedCell, Store
from tests.store.chunks import AWAY, leased, planned, same_bits, tiny_chunk
from tests.store.workers import tiny_cell

SECTOR = 512
OTHER = "18@third-host#12345"
DAY = 86_400.0


class LosingPower:
    """A database whose files are copied at an acknowledged commit, and at a later moment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database = folder, folder / "bench.db"
        with Store.open(f"sqlite:///{self.database}") as store:
            self.key = planned(store, items=6)
            lease = leased(store, self.key)
            for item in range(4):
                store.record(lease, tiny_chunk(item))
            self.main, self.synced = self._files()
            store.record(lease, tiny_chunk(4))
            self.later = self._files()[1]

    def _files(self) -> tuple[bytes, bytes]:
        log = self.database.with_name("bench.db-wal")
        return self.database.read_bytes(), log.read_bytes()

    def items_after(self, log: bytes, name: str) -> list[int]:
        """The items that a store finds which is opened on these files."""
        place = self.folder / name
        place.mkdir()
        (place / "bench.db").write_bytes(self.main)
        (place / "bench.db-wal").write_bytes(log)
        with Store.open(f"sqlite:///{place / 'bench.db'}") as store:
            assert store.check() == []
            found: list[int] = store.outcomes(self.key).item.tolist()
            expected = tiny_chunk(*found).outcomes
            assert same_bits(store.outcomes(self.key), expected)
        shutil.rmtree(place)
        return found


def torn(synced: bytes, later: bytes, seed: int) -> bytes:
    """The log with each sector of the later bytes written, missing or damaged at random."""
    chosen = random.Random(seed)
    log = bytearray(later[: chosen.randrange(len(synced), len(later) + 1)])
    for at in range(len(synced), len(log), SECTOR):
        part = slice(at, min(at + SECTOR, len(log)))
        size = part.stop - part.start
        log[part] = chosen.choice([log[part], bytes(size), chosen.randbytes(size)])
    return bytes(log)


def test_a_power_loss_keeps_every_acknowledged_outcome(tmp_path: Path) -> None:
    lost = LosingPower(tmp_path)
    assert len(lost.later) > len(lost.synced) + SECTOR
    assert lost.items_after(lost.later, "nothing lost") == [0, 1, 2, 3, 4]
    for seed in range(40):
        found = lost.items_after(torn(lost.synced, lost.later, seed), f"loss {seed}")
        assert found in ([0, 1, 2, 3], [0, 1, 2, 3, 4])
    # The files do hold what they are said to hold: without synced bytes an outcome is missing.
    assert lost.items_after(lost.synced[: len(lost.synced) // 2], "cut") != [0, 1, 2, 3]


@pytest.mark.parametrize("jump", [DAY, -DAY, 3600.0, -3600.0], ids=str)
def test_a_clock_that_jumps_loses_and_doubles_no_outcome(
    store: Store, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    server = "postgresql" in str(store._engine.url)  # its own clock decides there
    key, now = planned(store, items=3), [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = leased(store, key)
    store.record(first, tiny_chunk(0))
    now[0] += jump
    second = store.lease(key, OTHER)
    # A clock that went back expires no lease.
    assert (second is None) == (server or jump < 0)
    if second is not None:
        with pytest.raises(LeaseLostError):
            store.record(first, tiny_chunk(1))
    holder = second or first
    now[0] -= jump
    store.record(holder, tiny_chunk(1))
    now[0] += 1
    store.record(holder, tiny_chunk(2))
    store.finish(holder)
    assert store.outcomes(key).item.tolist() == [0, 1, 2]
    assert [row.state for row in store.cells()] == [CellState.DONE]


def test_a_change_to_summer_time_moves_no_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = planned(store)
    for zone in ("Europe/Berlin", "Pacific/Apia", "UTC"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        if zone == "Europe/Berlin":
            leased(store, key)
        assert store.lease(key, AWAY) is None
    monkeypatch.undo()
    time.tzset()


def test_twenty_writers_are_served_one_after_the_other(store: Store) -> None:
    cells = [tiny_cell(number, items=3) for number in range(20)]
    store.plan(PlannedCell(cell) for cell in cells)

    def work(number: int) -> None:
        lease = leased(store, cells[number].key, f"{number}@another-host#1")
        for item in range(3):
            store.record(lease, tiny_chunk(item))
        store.finish(lease)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert {row.state for row in store.cells()} == {CellState.DONE}
    found = [store.outcomes(cell.key).item.tolist() for cell in cells]
    assert found == [[0, 1, 2]] * 20
