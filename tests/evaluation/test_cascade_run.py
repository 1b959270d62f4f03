"""The suite `fast`, end to end: what each cell meets, and where `standard` meets all survivors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.core.cells import CLEAN, CellState
from bench.core.outcomes import Verdict
from bench.evaluation.launcher import MatrixRun, make_worker
from bench.evaluation.plan import Selection, plan_pairs
from bench.registry.registry import Registry
from bench.results import rank_notes
from bench.results.fast_items import certified_items, fast_stage
from bench.results.fast_suite import FAST_SUITE
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import RankingRow, load_ranking
from bench.store import CellRow, Store
from tests.planted.networks import CNN
from tests.planted.playing import installed, load_registry

EARLY, *STANDARD = FAST_SUITE.attacks["Linf"]
FEW = 40


@pytest.fixture(scope="module")
def planted() -> Iterator[Registry]:
    with installed():
        yield load_registry()


def fast(defense: str, examples: int = FEW, threat: str = "digits-linf") -> Selection:
    return Selection(
        (threat,), (defense,), examples=examples, mode="fast", suite="fast"
    )  # fmt: skip


def ran(registry: Registry, store: Store, selection: Selection) -> RankingRow:
    """Evaluate a selection of one defense; its row on the leaderboard of the suite."""
    run = MatrixRun(selection, str(store.url), quiet=True)
    make_worker(run, store, registry, lambda event: None).run()
    (row,) = load_ranking(store, find_leaderboard(store, selection.threats[0], "fast"))
    return row


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


def chain(store: Store) -> list[CellRow]:
    """The finished cells of attacks, each after the one before it."""
    rows = {r.cell.before: r for r in store.cells(mode="fast") if r.cell.attack != CLEAN}
    found, before = [], ""
    while before in rows:
        found.append(rows[before])
        before = rows[before].key
    assert {row.state for row in found} == {CellState.DONE}
    return found


def test_only_the_attacks_of_the_suite_are_planned(planted: Registry) -> None:
    names = [pair.attack.name for pair in plan_pairs(planted, fast("linear"))]
    assert names == [EARLY, *STANDARD]
    assert {pair.threat.name for pair in plan_pairs(planted, fast("linear"))} == {"digits-linf"}


@pytest.mark.slow
def test_an_honest_row_has_a_rank_and_the_audit_is_the_one_drawn_before(
    planted: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_notes, "LOW_N", FEW)
    row = ran(planted, store, fast(CNN))
    cells = chain(store)
    assert [one.cell.attack for one in cells] == [EARLY, *STANDARD]
    first = cells[0].cell
    names = (first.threat_id, first.defense_digest, first.attack_digest, first.examples)
    stage = fast_stage(store.outcomes(cells[0].key), FEW, *names)
    met = store.outcomes(cells[1].key).item.tolist()
    assert met == sorted({*stage.near, *stage.sample})
    assert row.audit is not None
    assert row.audit.passed
    assert (row.verdict, row.note, row.rank is not None) == ("sound", "", True)


def test_a_second_run_evaluates_nothing_again(planted: Registry, store: Store) -> None:
    first = ran(planted, store, fast("linear", 24))
    before = {row.key: row.updated for row in store.cells()}
    assert ran(planted, store, fast("linear", 24)) == first
    assert {row.key: row.updated for row in store.cells()} == before


def test_what_a_certificate_proves_is_not_attacked(planted: Registry, store: Store) -> None:
    row = ran(planted, store, fast("linear", 64))
    cell = chain(store)[0].cell
    proved = certified_items(store, cell.threat_id, cell.examples, cell.defense_digest)
    assert proved
    met = set(store.outcomes(cell.key).item.tolist())
    assert met == set(range(64)) - proved
    assert row.robust.k == len(proved)  # the certificate of a linear model is exact


@pytest.mark.slow
@pytest.mark.parametrize("name", ["argmax", "wrong-sign", "noise", "batch-mean"])
def test_no_planted_fake_has_a_rank(
    planted: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And `standard` has met each survivor, so that its figure is not that of the suite."""
    monkeypatch.setattr(rank_notes, "LOW_N", 24)
    row = ran(planted, store, fast(f"planted-{name}", 24))
    assert row.rank is None
    assert row.note
    assert row.verdict in ("suspect", "invalid")
    assert row.audit is None or row.audit.whole
    broken = {
        int(item)
        for one in chain(store)
        for found in [store.outcomes(one.key)]
        for item in found.item[found.verdict == Verdict.BROKEN]
    }
    last = [one for one in chain(store) if one.cell.attack == STANDARD[-1]]
    assert len(last) == 2
    assert row.robust.k <= 24 - len(broken)
    assert np.isin(list(broken), range(24)).all()
