"""Which cells of a database are current."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.core.cells import CLEAN, PROTOCOL
from bench.results.current_cells import current_cells
from bench.store import Store
from tests.fixtures.small_store import World, first


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        made = World(store)
        made.threat("linf", "pgd")
        made.attack("pgd")
        made.defense("d")
        made.clean("d", first(600))
        made.evaluate("d", "pgd", first(10))
        yield made


def current(world: World) -> set[str]:
    return {row.cell.attack for row in current_cells(world.store)}


def test_cells_of_unchanged_plugins_are_current(world: World) -> None:
    assert current(world) == {CLEAN, "pgd"}


def test_a_changed_attack_leaves_the_clean_pass_current(world: World) -> None:
    world.attack("pgd", version="2")
    assert current(world) == {CLEAN}
    given = current_cells(world.store, {"pgd": "another digest"})
    assert {row.cell.attack for row in given} == {CLEAN}


def test_a_changed_defense_leaves_no_cell_current(world: World) -> None:
    world.defense("d", version="2")
    assert current(world) == set()


def test_a_cell_of_another_protocol_is_not_current(world: World) -> None:
    world.attack("bim")
    world.evaluate("d", "bim", first(3), protocol=PROTOCOL + 1)
    assert current(world) == {CLEAN, "pgd"}


def test_a_defense_is_current_under_its_digest_on_the_data_set_of_the_cell(world: World) -> None:
    mine = world.digests["defense", "d"]
    world.unbuilt("d", digests={"mnist": mine, "digits": "another"})
    assert current(world) == set()
    world.unbuilt("d", digests={"digits": mine})
    assert current(world) == {CLEAN, "pgd"}


def test_a_defense_whose_card_has_no_digest_is_current_as_in_its_newest_cell(world: World) -> None:
    world.unbuilt("d")
    assert current(world) == {CLEAN, "pgd"}
