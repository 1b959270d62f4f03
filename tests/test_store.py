"""What the store promises: nothing acknowledged is lost, nothing is written twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import create_engine, text, update

from bench.records import (
    OUTCOME_DTYPES,
    BenchError,
    Card,
    Cell,
    CellState,
    Chunk,
    Culprit,
    Failure,
    KeptImage,
    Outcomes,
    UnfitError,
    Verdict,
)
from bench.store import Certificate, Lease, LeaseLostError, Planned, Store, owner_name
from bench.store.packing import pack, unpack, unpack_items
from bench.store.tables import CELLS
from tests.store_workers import tiny_cell, tiny_outcomes

AWAY = "17@another-host#12345"
"""An owner of whom only the clock can say that he is late."""


def tiny_chunk(*items: int) -> Chunk:
    return Chunk(tiny_outcomes(list(items)), seconds=0.5)


def expire(store: Store, key: str) -> None:
    with store._engine.begin() as connection:
        connection.execute(update(CELLS).where(CELLS.c.key == key).values(lease_until=0.0))


def leased(store: Store, key: str, owner: str = AWAY) -> Lease:
    lease = store.lease(key, owner)
    assert lease is not None
    return lease


def planned(store: Store, items: int = 6) -> str:
    cell = tiny_cell(items=items)
    store.plan([Planned(cell)])
    return cell.key


# Two databases, one code.


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A private PostgreSQL that listens on a socket in a folder of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL server programs in /usr/lib/postgresql")
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = "nobody" if os.geteuid() == 0 else ""
    if user:
        shutil.chown(folder, user)
    switch = ["runuser", "-u", user, "--"] if user else []

    def run(program: str, *arguments: str) -> None:
        command = [*switch, str(found[-1] / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    try:
        run("initdb", "-A", "trust", "-U", "bench", "-E", "UTF8", "--no-sync")
        quiet = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", quiet, "start")
        yield f"postgresql://bench@/postgres?host={folder}"
        run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that does not exist yet, or is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'bench.db'}"
    server = str(request.getfixturevalue("server"))
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return server


@pytest.fixture
def store(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path / "artifacts"))
    with Store.open(url) as opened:
        yield opened


# Packing.


def same_bits(one: Outcomes, other: Outcomes) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in one._fields]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@st.composite
def any_outcomes(draw: st.DrawFn) -> Outcomes:
    count = draw(st.integers(0, 70))
    return Outcomes._make(draw(hnp.arrays(kind, count)) for kind in OUTCOME_DTYPES)


@given(any_outcomes())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_unpacking_gives_back_every_bit(outcomes: Outcomes) -> None:
    assert same_bits(outcomes, unpack(pack(outcomes)))
    assert unpack_items(pack(outcomes)).tolist() == outcomes.item.tolist()


def test_packed_bytes_are_the_same_on_every_machine() -> None:
    blob = pack(tiny_outcomes([258, 1]))
    assert blob[0] == 1
    assert zlib.decompress(blob[1:])[:12] == b"\2\0\0\0" + b"\2\1" + b"\1\0" + b"\0\0\0\0"


def test_outcomes_without_rejection_scores_are_packed_as_before_there_were_any() -> None:
    plain = tiny_outcomes([4, 5, 6])
    scored = plain._replace(rejection=np.array([-np.inf, 0.25, -1], np.float32))
    one, two = (zlib.decompress(pack(outcomes)[1:]) for outcomes in (plain, scored))
    assert (pack(plain)[0], pack(scored)[0]) == (1, 2)
    assert two[: len(one)] == one and len(two) == len(one) + 3 * 4
    assert np.array_equal(unpack(pack(plain)).rejection, np.full(3, -np.inf, np.float32))
    assert np.array_equal(unpack(pack(scored)).rejection, scored.rejection)


def test_outcomes_of_the_wrong_type_or_length_are_refused() -> None:
    good = tiny_outcomes([1, 2])
    with pytest.raises(BenchError, match=r"item came as int64\[2\], expected int32\[2\]"):
        pack(good._replace(item=good.item.astype(np.int64)))
    with pytest.raises(BenchError, match=r"step came as int32\[1\], expected int32\[2\]"):
        pack(good._replace(step=good.step[:1]))


def test_a_newer_packing_or_a_damaged_one_is_refused_with_a_sentence() -> None:
    blob = pack(tiny_outcomes([1]))
    with pytest.raises(UnfitError, match="format 3"):
        unpack(b"\3" + blob[1:])
    with pytest.raises(BenchError, match="damaged"):
        unpack(blob[:-3])


# Planning.


def test_planning_twice_changes_nothing(store: Store) -> None:
    plans = [Planned(tiny_cell(n)) for n in range(3)]
    store.plan(plans)
    before = store.cells()
    store.plan(plans)
    assert store.cells() == before
    assert [row.cell for row in before] == [plan.cell for plan in plans]


def test_planning_leaves_running_and_done_cells_alone(store: Store) -> None:
    key = planned(store, items=2)
    lease = leased(store, key)
    skip = Planned(tiny_cell(items=2), CellState.SKIPPED, "too slow")
    store.plan([skip])
    store.record(lease, tiny_chunk(0, 1))
    store.finish(lease)
    store.plan([skip])
    store.plan([Planned(tiny_cell(items=2))])
    (row,) = store.cells()
    assert (row.state, row.reason, row.items_done) == (CellState.DONE, "", 2)


def test_a_failed_and_a_skipped_cell_open_again_when_planned(store: Store) -> None:
    failed, skipped = tiny_cell(0), tiny_cell(1)
    store.plan([Planned(failed), Planned(skipped, CellState.SKIPPED, "too slow")])
    store.fail(leased(store, failed.key), Failure(Culprit.PLUGIN, "it returned nothing."))
    told = [(row.state, row.reason, row.culprit) for row in store.cells()]
    assert told == [("failed", "it returned nothing.", "plugin"), ("skipped", "too slow", None)]
    assert store.lease(failed.key, AWAY) is None
    assert store.lease(skipped.key, AWAY) is None
    store.plan([Planned(failed), Planned(skipped)])
    assert {(row.state, row.reason, row.culprit) for row in store.cells()} == {
        (CellState.MISSING, "", None)
    }


def test_a_renamed_attack_keeps_its_figures(store: Store) -> None:
    key = planned(store, items=1)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(0))
    store.finish(lease)
    store.plan([Planned(replace(tiny_cell(items=1), attack="new", threat="u"), required=True)])
    (row,) = store.cells(threat="u")
    assert (row.key, row.attack, row.required, row.state) == (key, "new", True, "done")


def test_two_cells_that_share_a_key_are_refused() -> None:
    from bench.store.cells import _by_key

    with pytest.raises(BenchError, match="'a0' against 'd' on 't' and 'twin' against"):
        _by_key([Planned(tiny_cell()), Planned(replace(tiny_cell(), attack="twin"))])


def test_cells_are_found_by_threat_examples_and_mode(store: Store) -> None:
    first = tiny_cell(0)
    others = [
        Cell("u", "d", "a", "1", "2", "3", "ex", 1),
        Cell("t", "d", "a", "1", "2", "3", "other", 1),
        Cell("t", "d", "a", "1", "2", "3", "ex", 1, mode="rank"),
    ]
    store.plan([Planned(cell) for cell in [first, *others]])
    assert len(store.cells()) == 4
    assert [row.key for row in store.cells("t", "ex", "full")] == [first.key]


# Leases.


def test_a_held_cell_is_not_leased_again(store: Store) -> None:
    key = planned(store)
    assert leased(store, key, owner_name()).fence == 1
    assert store.lease(key, AWAY) is None
    assert store.lease(key, owner_name()) is None
    assert store.lease("unknown", AWAY) is None


def test_of_many_who_ask_at_once_one_gets_the_cell(store: Store) -> None:
    key = planned(store)
    barrier, got = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait()
        got.append(store.lease(key, owner_name()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.fence for lease in got if lease) == [1]


def test_a_late_owner_cannot_write_once_another_has_taken_over(store: Store) -> None:
    key = planned(store, items=2)
    late = leased(store, key)
    expire(store, key)
    store.heartbeat(late)
    assert store.lease(key, AWAY) is None
    expire(store, key)
    new = leased(store, key)
    assert new.fence == late.fence + 1
    with pytest.raises(LeaseLostError, match="fence 1"):
        store.record(late, tiny_chunk(0))
    with pytest.raises(LeaseLostError, match="fence 1"):
        store.fail(late, Failure(Culprit.PLUGIN, "no."))
    for write in (store.heartbeat, store.finish, store.release):
        with pytest.raises(LeaseLostError, match="fence 1"):
            write(late)
    assert store.finished_items(key).tolist() == []
    store.record(new, tiny_chunk(0, 1))
    store.finish(new)
    with pytest.raises(LeaseLostError):
        store.record(new, tiny_chunk(2))


def test_a_lease_with_somebody_elses_name_cannot_write(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    with pytest.raises(LeaseLostError):
        store.heartbeat(Lease(key, "me", lease.fence))


def test_recording_extends_the_lease(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    expire(store, key)
    store.record(lease, tiny_chunk(0))
    assert store.lease(key, AWAY) is None


def test_a_dead_owner_on_this_host_frees_its_cell_at_once(store: Store) -> None:
    key = planned(store)
    script = "from bench.store.owner import owner_name; print(owner_name('gpu0'))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    dead = told.stdout.decode().strip()
    # A process that started later has another birth: a pid used again is not mistaken.
    assert dead.partition("#")[2] != owner_name("gpu0").partition("#")[2]
    leased(store, key, dead)
    assert leased(store, key, owner_name()).fence == 2


def test_a_reused_pid_is_not_its_former_owner(store: Store) -> None:
    key = planned(store)
    former = owner_name().rpartition("#")[0] + "#1"
    leased(store, key, former)
    assert leased(store, key).fence == 2


def test_a_pid_of_another_host_proves_nothing(store: Store) -> None:
    key = planned(store)
    leased(store, key, owner_name().replace("@", "@elsewhere."))
    assert store.lease(key, owner_name()) is None


def test_a_released_cell_is_open_and_keeps_its_outcomes(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(3))
    store.release(lease)
    (row,) = store.cells()
    assert (row.state, row.items_done, row.owner) == (CellState.MISSING, 1, "")
    assert leased(store, key).fence == 2
    assert store.finished_items(key).tolist() == [3]


def test_three_attempts_without_an_outcome_poison_a_cell(store: Store) -> None:
    key = planned(store)
    for _ in range(3):
        leased(store, key)
        expire(store, key)
    assert store.lease(key, AWAY) is None
    (row,) = store.cells()
    assert (row.state, row.culprit) == (CellState.FAILED, Culprit.INFRASTRUCTURE)
    assert row.reason.startswith("poisoned")
    store.plan([Planned(tiny_cell(items=6))])
    for _ in range(3):
        leased(store, key)
        expire(store, key)


def test_an_outcome_or_a_release_clears_the_count_of_attempts(store: Store) -> None:
    key = planned(store)
    for item in range(5):
        store.record(leased(store, key), tiny_chunk(item))
        expire(store, key)
    for _ in range(5):
        store.release(leased(store, key))
    for _ in range(3):
        leased(store, key)
        expire(store, key)


def test_a_task_is_done_once(store: Store) -> None:
    lease = store.lease_task("train:abc", owner_name())
    assert lease is not None
    assert store.lease_task("train:abc", owner_name()) is None
    store.heartbeat(lease)
    store.release(lease)
    again = store.lease_task("train:abc", AWAY)
    assert again is not None
    assert again.fence == 2
    with pytest.raises(LeaseLostError):
        store.finish_task(lease)
    assert not store.task_done("train:abc")
    store.finish_task(again)
    assert store.task_done("train:abc")
    assert store.lease_task("train:abc", AWAY) is None
    assert not store.task_done("train:other")


def test_a_failed_task_may_be_tried_again(store: Store) -> None:
    lease = store.lease_task("train:abc", AWAY)
    assert lease is not None
    store.fail(lease, Failure(Culprit.USER, "no data."))
    assert store.lease_task("train:abc", AWAY) is not None


# Recording.


def test_an_item_recorded_before_is_refused_and_nothing_of_its_chunk_is_kept(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(0, 4))
    for twice in ((4, 5), (1, 1), (0, 4)):
        with pytest.raises(BenchError, match="came twice"):
            store.record(lease, tiny_chunk(*twice))
    store.record(lease, tiny_chunk(1, 3))
    assert store.finished_items(key).tolist() == [0, 1, 3, 4]
    assert store.cells()[0].items_done == 4


def test_more_outcomes_than_items_are_refused(store: Store) -> None:
    key = planned(store, items=2)
    with pytest.raises(BenchError, match="has 2 items and got 3 outcomes"):
        store.record(leased(store, key), tiny_chunk(0, 1, 2))


def test_an_incomplete_cell_is_not_finished(store: Store) -> None:
    key = planned(store, items=3)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(0, 1))
    with pytest.raises(BenchError, match="2 of 3 outcomes"):
        store.finish(lease)
    assert store.cells()[0].state is CellState.RUNNING


def test_an_empty_chunk_only_keeps_the_lease(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    store.record(lease, tiny_chunk())
    assert store.cells()[0].seconds == 0.5
    assert store.finished_items(key).dtype == np.int32


def test_outcomes_come_back_in_item_order_as_they_were_given(store: Store) -> None:
    key = planned(store)
    lease = leased(store, key)
    for part in ((5, 2), (0, 4, 1), (3,)):
        store.record(lease, tiny_chunk(*part))
    assert same_bits(store.outcomes(key), tiny_outcomes([0, 1, 2, 3, 4, 5]))
    assert len(store.outcomes("unknown").item) == 0


def test_the_summary_follows_from_the_outcomes(store: Store) -> None:
    key = planned(store, items=6)
    verdicts = [Verdict.BROKEN, 0, Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX, 1, Verdict.NOT_FINITE]
    found = tiny_outcomes([0, 1, 2, 3, 4, 5])._replace(
        verdict=np.array(verdicts, np.uint8),
        eight_bit=np.array([1, 1, 0, 0, 0, 0], np.bool_),
        fragile=np.array([0, 1, 0, 0, 1, 0], np.bool_),
        distance=np.array([0.25, 9, 9, 9, 0.5, np.inf]),
        forwards=np.full(6, 2**31 - 1, np.int32),
        gradients=np.arange(6, dtype=np.int32),
        looks=np.ones(6, np.int32),
    )
    lease = leased(store, key)
    store.record(lease, Chunk(found, seconds=1.25))
    assert store.cells()[0].robust is None
    store.finish(lease)
    (row,) = store.cells()
    assert (row.robust, row.out_of_ball, row.fragile, row.broken_8bit) == (4, 3, 1, 1)
    assert (row.forwards, row.gradients, row.looks) == (6 * (2**31 - 1), 15, 6)
    assert (row.max_distance, row.seconds, row.state) == (0.5, 1.25, CellState.DONE)
    assert store.check() == []


def test_a_cell_that_nothing_broke_has_no_largest_distance(store: Store) -> None:
    key = planned(store, items=1)
    lease = leased(store, key)
    store.record(lease, tiny_chunk(1))
    store.finish(lease)
    assert (store.cells()[0].robust, store.cells()[0].max_distance) == (1, None)


# Images.


def images_of(*items: int) -> npt.NDArray[np.float32]:
    draws = np.random.default_rng(3).random((99, 3, 2, 2), dtype=np.float32)
    return draws[list(items)]


def test_kept_images_come_back_bit_for_bit(store: Store) -> None:
    key = planned(store)
    original = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    kept = tuple(
        KeptImage(item, original, images_of(item)[0], 3, 3, 0.75, 5, 0.5) for item in (4, 1)
    )
    outcomes = tiny_outcomes([4, 1])
    store.record(leased(store, key), Chunk(outcomes, 0.0, images=kept))
    for before, after in zip(reversed(kept), store.images(key), strict=True):
        assert (after.item, after.label, after.clean_confidence) == (before.item, 5, 0.75)
        assert after.original.tobytes() == before.original.tobytes()
        assert after.original.shape == (3, 2, 2)
        assert after.adversarial.tobytes() == before.adversarial.tobytes()
        assert after.adversarial.dtype == np.float32


def test_exact_images_come_back_bit_for_bit_in_item_order(store: Store) -> None:
    key = planned(store)
    assert store.exact_images(key) is None
    lease = leased(store, key)
    for items in ([5, 2], [0, 3]):
        exact = (np.array(items, np.int32), images_of(*items))
        store.record(lease, Chunk(tiny_outcomes(items), 0.0, exact=exact))
    found = store.exact_images(key)
    assert found is not None
    assert found[0].tolist() == [0, 2, 3, 5]
    assert found[1].tobytes() == images_of(0, 2, 3, 5).tobytes()


def test_a_missing_or_altered_file_of_images_is_named(store: Store) -> None:
    key = planned(store)
    exact = (np.array([0], np.int32), images_of(0))
    store.record(leased(store, key), Chunk(tiny_outcomes([0]), 0.0, exact=exact))
    (file,) = store.artifacts.rglob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.check() == [f"{file} was altered."]
    with pytest.raises(BenchError, match="was altered"):
        store.exact_images(key)
    file.unlink()
    assert store.check() == [f"{file} is missing."]
    with pytest.raises(BenchError, match="is missing"):
        store.exact_images(key)


def test_images_that_cannot_be_written_leave_the_chunk_unrecorded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = planned(store)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_ARTIFACTS", str(tmp_path / "file" / "below"))
    exact = (np.array([0], np.int32), images_of(0))
    with pytest.raises(UnfitError, match="no images can be written to"):
        store.record(leased(store, key), Chunk(tiny_outcomes([0]), 0.0, exact=exact))
    assert store.finished_items(key).tolist() == []


# What is told beside the cells.


def test_the_newest_card_is_the_current_one(store: Store) -> None:
    old = Card("attack", "pgd", "built-in", "1", detail={"steps": 40, "eps": [1, 255]})
    new = Card("attack", "pgd", "built-in", "2", "arXiv:1706.06083", "climbs", {"steps": 50})
    store.declare([old, Card("defense", "pgd", "built-in"), Card("attack", "fgsm", "submission")])
    assert store.cards("attack")[1] == old
    store.declare([new])
    assert store.cards("attack")[1] == new
    assert [card.name for card in store.cards("attack")] == ["fgsm", "pgd"]


def test_examples_are_kept_once(store: Store) -> None:
    labels = np.array([-1, 300, 7], np.int16)
    for _ in range(2):
        store.keep_examples("digest", "digits", 3, labels, ("zero", "one"), (1, 8, 8))
    row = store.examples("digest")
    assert row.labels.tolist() == [-1, 300, 7]
    assert row.labels.dtype == np.int16
    assert (row.dataset, row.n, row.classes, row.shape) == ("digits", 3, ("zero", "one"), (1, 8, 8))
    with pytest.raises(BenchError, match="no examples other"):
        store.examples("other")
    with pytest.raises(BenchError, match="give one each"):
        store.keep_examples("short", "digits", 4, labels, (), (1, 8, 8))


def test_the_newest_finding_of_a_diagnostic_stands(store: Store) -> None:
    store.note("d", "dd", "ex", "zero-gradient", "raised", "all gradients are zero.")
    store.note("d", "dd", "ex", "batch", "clear", "one image at a time answers alike.")
    store.note("d", "dd", "ex", "zero-gradient", "clear", "none is zero.")
    store.note("d", "dd", "other", "batch", "raised", "it differs.")
    assert store.evidence("dd", "ex") == [
        ("batch", "clear", "one image at a time answers alike."),
        ("zero-gradient", "clear", "none is zero."),
    ]


def test_certificates_come_back_flag_by_flag(store: Store) -> None:
    flags = np.random.default_rng(0).random(37) < 0.5
    store.certify("tid", "ex", Certificate("d", "dd", "linear", "old", True, ~flags))
    store.certify("tid", "ex", Certificate("d", "dd", "linear", "new", True, flags))
    store.certify("tid", "ex", Certificate("c", "cc", "smoothing", "ss", False, ~flags))
    first, second = store.certificates("tid", "ex")
    assert first[:5] == ("c", "cc", "smoothing", "ss", False)
    assert second[:5] == ("d", "dd", "linear", "new", True)
    assert second.certified.tolist() == flags.tolist()
    assert store.certificates("tid", "other") == []


def test_a_submission_shows_its_newest_state_and_its_history(store: Store) -> None:
    store.submission("mine", "received")
    store.submission("yours", "received")
    store.submission("mine", "rejected", "no card.toml.")
    newest, other = store.submissions()
    assert newest[:3] == ("mine", "rejected", "no card.toml.")
    assert [step.state for step in newest.history] == ["received", "rejected"]
    assert (other.name, len(other.history)) == ("yours", 1)
    with pytest.raises(BenchError, match="'lost' is no submission state"):
        store.submission("mine", "lost")


# A model of leases beside the real ones.


class Leases(RuleBasedStateMachine):
    """Two owners, one cell, and a clock that runs out whenever it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store.open(f"sqlite:///{self.folder}/bench.db")
        self.key = planned(self.store, items=6)
        self.held: list[Lease] = []
        self.acknowledged: set[int] = set()
        self.finished = 0
        self.late = False

    @property
    def valid(self) -> Lease | None:
        return self.held[-1] if self.held and not self.finished and not self.free else None

    free = True

    @rule(owner=st.sampled_from(["one", "two"]))
    def lease(self, owner: str) -> None:
        got = self.store.lease(self.key, owner)
        assert (got is not None) == (not self.finished and (self.free or self.late))
        if got:
            assert got.fence == len(self.held) + 1
            self.held.append(got)
            self.free = self.late = False

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 99), item=st.integers(0, 5))
    def record(self, pick: int, item: int) -> None:
        lease = self.held[pick % len(self.held)]
        try:
            self.store.record(lease, tiny_chunk(item))
        except LeaseLostError:
            assert lease != self.valid
        except BenchError:
            assert item in self.acknowledged
        else:
            assert lease == self.valid
            assert item not in self.acknowledged
            self.acknowledged.add(item)
            self.late = False

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 99))
    def finish(self, pick: int) -> None:
        lease = self.held[pick % len(self.held)]
        try:
            self.store.finish(lease)
        except LeaseLostError:
            assert lease != self.valid
        except BenchError:
            assert len(self.acknowledged) < 6
        else:
            assert lease == self.valid
            assert len(self.acknowledged) == 6
            self.finished += 1

    @precondition(lambda self: self.valid)
    @rule()
    def release(self) -> None:
        self.store.release(self.held[-1])
        self.free, self.late = True, False

    @precondition(lambda self: self.valid and self.acknowledged)
    @rule()
    def run_late(self) -> None:
        expire(self.store, self.key)
        with self.store._engine.begin() as connection:
            connection.execute(update(CELLS).values(attempts=0))
        self.late = True

    @invariant()
    def resume_sees_exactly_what_was_acknowledged(self) -> None:
        assert set(self.store.finished_items(self.key).tolist()) == self.acknowledged
        assert self.finished <= 1

    def teardown(self) -> None:
        assert self.store.check() == []
        self.store.close()
        shutil.rmtree(self.folder)


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
