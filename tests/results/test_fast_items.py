"""Which examples each attack of the suite `fast` meets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.core.audits import audit_order, audit_size
from bench.core.cards import CertifierCard
from bench.core.cells import Cell
from bench.core.outcomes import Chunk, Outcomes
from bench.results.fast_items import certified_items, fast_stage, items_of_cell
from bench.store import CertificateRow, PlannedCell, Store
from tests.fixtures.small_store import World, first, outcomes, some

N = 100
NAMES = ("threat", "defense", "protocol")


def with_loss(broken: np.ndarray, loss: np.ndarray) -> Outcomes:
    return outcomes(broken, loss=loss)


def test_the_parts_are_disjoint_and_make_up_the_survivors() -> None:
    made = with_loss(first(20, N), np.arange(N))
    stage = fast_stage(made, N, *NAMES)
    assert stage.survivors == tuple(range(20, N))
    parts = (*stage.near, *stage.sample, *stage.others)
    assert sorted(parts) == list(range(20, N))
    assert stage.near == (96, 97, 98, 99)
    assert len(stage.sample) == audit_size(76, N)


def test_examples_without_a_finite_loss_are_the_nearest() -> None:
    loss = np.ones(N)
    loss[[7, 60]] = np.nan
    assert {7, 60} <= set(fast_stage(with_loss(first(0, N), loss), N, *NAMES).near)


def test_the_sample_is_the_first_of_an_order_that_no_outcome_changes() -> None:
    made = with_loss(first(20, N), np.arange(N))
    stage = fast_stage(made, N, *NAMES)
    drawn = [i for i in audit_order(N, *NAMES).tolist() if 20 <= i < 96]
    assert stage.sample == tuple(sorted(drawn[: len(stage.sample)]))
    assert fast_stage(made, N, "threat", "other", "protocol").sample != stage.sample


def test_without_survivors_there_is_nothing_to_audit() -> None:
    assert fast_stage(with_loss(first(N, N), np.ones(N)), N, *NAMES) == ((), (), ())


def test_of_few_survivors_all_are_met() -> None:
    stage = fast_stage(with_loss(first(N - 2, N), np.ones(N)), N, *NAMES)
    assert len(stage.near) == 1
    assert stage.sample == ()  # one of a hundred is within the bound


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        made = World(store, n=N)
        made.threat("linf", "apgd-early-stop")
        made.defense("d")
        yield made


def record(world: World, attack: str, before: str, broken: set[int], items: list[int]) -> str:
    """A finished cell of the mode `fast`, and its key."""
    cell = replace(cell_of(world, attack, before), items=len(items))
    world.store.plan([PlannedCell(cell)])
    lease = world.store.lease(cell.key, "test")
    assert lease is not None
    found = outcomes(
        np.isin(items, list(broken)), np.array(items, np.int32), loss=np.array(items, np.float32)
    )
    world.store.record(lease, Chunk(found, 0.0))
    world.store.finish(lease)
    return cell.key


def cell_of(world: World, attack: str, before: str = "", mode: str = "fast") -> Cell:
    return Cell(
        "linf", "d", attack, world.threats["linf"], world.digests["defense", "d"], f"{attack} 1",
        world.examples, N, mode=mode, before=before,
    )  # fmt: skip


def test_each_attack_meets_what_the_suite_leaves_it(world: World) -> None:
    root = record(world, "apgd-early-stop", "", set(range(20)), list(range(N)))
    names = (world.threats["linf"], world.digests["defense", "d"], "apgd-early-stop 1", "examples")
    stage = fast_stage(world.store.outcomes(root), N, *names)
    union = sorted({*stage.near, *stage.sample})
    assert items_of_cell(world.store, cell_of(world, "a", root), N) == union
    fallen = union[3]
    one = record(world, "a", root, {fallen}, union)
    left = [item for item in union if item != fallen]
    assert items_of_cell(world.store, cell_of(world, "b", one), N) == left
    two = record(world, "b", one, set(), left)
    again = cell_of(world, "a", two)
    assert items_of_cell(world.store, again, N) == list(stage.others)
    three = record(world, "a", two, {stage.others[0]}, list(stage.others))
    assert items_of_cell(world.store, cell_of(world, "b", three), N) == list(stage.others[1:])


def test_in_rank_mode_each_attack_meets_what_the_one_before_has_left(world: World) -> None:
    root = record(world, "apgd-early-stop", "", {0, 5}, list(range(N)))
    rank = cell_of(world, "a", root, mode="rank")
    assert items_of_cell(world.store, rank, N) == [i for i in range(N) if i not in (0, 5)]
    assert items_of_cell(world.store, cell_of(world, "a", mode="rank"), 7) == list(range(7))


@pytest.mark.parametrize(
    ("exact", "error", "origin", "counts"),
    [
        (False, 0.0, "built-in", True), (True, 0.0, "built-in", True),
        (False, 0.001, "built-in", False), (False, 0.0, "submission", False),
    ],
)  # fmt: skip
def test_what_a_deterministic_built_in_certificate_proves_is_not_attacked(
    world: World, *, exact: bool, error: float, origin: str, counts: bool
) -> None:
    world.certifier("bound")
    card = CertifierCard(
        name="bound", origin=origin, digest=world.digests["certifier", "bound"],
        exact=exact, error=error,
    )  # fmt: skip
    world.store.record_cards([card])
    whose = ("d", world.digests["defense", "d"], "bound", world.digests["certifier", "bound"])
    proved = some(N, 4, 30)
    world.store.record_certificate(
        world.threats["linf"], world.examples, CertificateRow(*whose, exact, proved)
    )
    given = (world.store, world.threats["linf"], world.examples)
    expected = {4, 30} if counts else set()
    assert certified_items(*given, world.digests["defense", "d"]) == expected
    assert certified_items(*given, "another version") == set()
    met = items_of_cell(world.store, cell_of(world, "apgd-early-stop"), N)
    assert met == [item for item in range(N) if item not in expected]
