"""A table of 10,000 cells is read while another process writes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.core.cells import CellState
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import load_ranking
from bench.store import PlannedCell, Store
from tests.fixtures.small_store import World, first

DEFENSES, ATTACKS, EXAMPLES, PLAYED = 100, 100, 10, 10


@pytest.mark.slow
def test_a_table_of_10000_cells_is_read_during_a_write(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bench.db'}"
    with Store.open(url) as store:
        world = World(store, n=EXAMPLES)
        world.threat("linf", "a0")
        for attack in range(ATTACKS):
            world.attack(f"a{attack}")
        for number in range(DEFENSES):
            world.defense(f"d{number}")
        store.plan(
            PlannedCell(
                world.cell(f"d{number}", f"a{attack}"), CellState.NOT_APPLICABLE, "not of this norm"
            )
            for number in range(DEFENSES)
            for attack in range(number < PLAYED, ATTACKS)
        )
        for number in range(PLAYED):
            world.clean(f"d{number}", first(EXAMPLES, EXAMPLES))
            world.evaluate(f"d{number}", "a0", first(number, EXAMPLES))
        assert len(store.cells()) == DEFENSES * ATTACKS + PLAYED
        open_cell = world.cell("d0", "a0", seed=1)
        store.plan([PlannedCell(open_cell)])
        with store.writing(), Store.open(url, read_only=True) as reader:
            begin = time.process_time()
            ranking = load_ranking(reader, find_leaderboard(reader, "linf"))
            assert time.process_time() - begin < 10
            assert len(reader.cells()) == DEFENSES * ATTACKS + PLAYED + 1
        assert store.lease(open_cell.key, "1@another-host#1") is not None
    figures = {row.defense: row.robust.k for row in ranking if row.robust.n}
    assert figures == {f"d{number}": EXAMPLES - number for number in range(PLAYED)}
