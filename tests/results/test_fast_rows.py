"""Rows of the suite `fast`: the audit, the note on a row without a rank, ranks of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.core.audits import BOUND, Audit, audit_order, audit_size
from bench.results.example_results import load_results
from bench.results.fast_items import FastStage, stage_of
from bench.results.fast_rows import why_no_fast_rank
from bench.results.fast_suite import FAST_SUITE
from bench.results.leaderboards import leaderboards
from bench.results.ranking import RankingRow
from bench.store import Store
from bench.store.published import published_database
from tests.fixtures.small_store import World, first, outcomes
from tests.results.small_results import ranking_of, shown_text

N = 600
EARLY, *STANDARD = FAST_SUITE.attacks["Linf"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        made = World(store, n=N)
        made.threat("linf", "pgd")
        for name in (EARLY, *STANDARD, "pgd"):
            made.attack(name)
        yield made


def play(world: World, defense: str, broken: int, falls: str = "") -> FastStage:
    """A row whose first attack breaks `broken` examples; then the audit.

    `falls`: a part of the survivors of which the standard attacks break the first example.
    """
    world.defense(defense)
    world.clean(defense, first(N, N))
    root = world.cell(defense, EARLY, mode="fast")
    world.record(root, outcomes(first(broken, N), loss=np.arange(N)))
    (row,) = world.store.cells(key=root.key)
    stage = stage_of(world.store, row)
    chosen = sorted({*stage.near, *stage.sample})
    before = meet(world, defense, chosen, root.key, getattr(stage, falls)[:1] if falls else ())
    if falls == "sample":
        meet(world, defense, list(stage.others), before, stage.others[:2])
    return stage


def meet(world: World, defense: str, items: list[int], before: str, broken: tuple[int, ...]) -> str:
    """The cells of the standard attacks on these items, of which the first one breaks some."""
    left = items
    for name in STANDARD:
        cell = replace(world.cell(defense, name, mode="fast", before=before), items=len(left))
        bits = np.isin(left, list(broken) if name == STANDARD[0] else [])
        world.record(cell, outcomes(bits, np.array(left, np.int32)))
        left = [item for item in left if item not in broken]
        before = cell.key
    return before


def rows(world: World, mode: str = "fast") -> dict[str, RankingRow]:
    return {row.defense: row for row in ranking_of(world.store, "linf", mode)}


def test_a_row_whose_audit_passes_has_a_rank_and_states_the_bound(world: World) -> None:
    stage = play(world, "d", 100)
    row = rows(world)["d"]
    assert row.audit == Audit(0, len(stage.sample), len(stage.sample) + len(stage.others), N)
    assert 0 < row.audit.most <= 18
    assert (row.note, row.rank is not None, row.robust_ranked.k) == ("", True, 500)
    assert row.audit.sentence in " ".join(shown_text(world, "fast").split())


def test_examples_that_fall_near_the_boundary_leave_the_audit_clean(world: World) -> None:
    play(world, "d", 100, "near")
    row = rows(world)["d"]
    assert row.audit is not None
    assert row.audit.passed
    assert (row.note, row.robust_ranked.k) == ("", 499)


def test_where_one_of_the_sample_falls_all_are_met_and_there_is_no_rank(world: World) -> None:
    stage = play(world, "d", 100, "sample")
    row = rows(world)["d"]
    assert row.audit is not None
    assert (row.audit.fell, row.audit.whole, row.audit.most) == (1, True, 0)
    assert (row.rank, row.robust.k) == (None, 500 - 3)
    assert f"1 of {len(stage.sample)} audited survivors fell" in row.note
    assert "--suite standard" in row.note


def test_an_audit_that_has_met_a_part_only_is_none(world: World) -> None:
    world.defense("d")
    world.clean("d", first(N, N))
    root = world.cell("d", EARLY, mode="fast")
    world.record(root, outcomes(first(100, N), loss=np.arange(N)))
    row = rows(world)["d"]
    assert (row.audit, row.rank) == (None, None)
    assert "Provisional" in row.note
    assert "--suite fast" in row.note


def test_without_survivors_there_is_nothing_to_audit(world: World) -> None:
    play(world, "d", N)
    row = rows(world)["d"]
    assert row.audit == Audit(0, 0, 0, N, whole=True)
    assert (row.note, row.robust.k) == ("", 0)


def test_ranks_of_both_suites_never_mix(world: World) -> None:
    play(world, "quick", 100)
    world.defense("slow")
    world.clean("slow", first(N, N))
    world.evaluate("slow", "pgd", first(50, N))
    assert set(rows(world)) == {"quick"}
    assert set(rows(world, "full")) == {"slow"}
    assert rows(world, "full")["slow"].audit is None


@pytest.mark.parametrize("verdict", ["suspect", "invalid"])
def test_a_row_with_an_open_warning_has_no_rank(verdict: str) -> None:
    assert "a gradient-masking check warns" in why_no_fast_rank(Audit(0, 9, 99, 300), verdict)
    assert why_no_fast_rank(Audit(0, 9, 99, 300), "sound") == ""


@pytest.mark.parametrize("cheap", [("fgsm",), ("pgd",)], ids=["after fgsm", "after pgd"])
def test_the_bound_covers_what_stored_outcomes_show(cheap: tuple[str, ...]) -> None:
    """200 audits of each published row, of the survivors of a cheap attack by all attacks.

    The statement of an audit is true where nothing of the sample fell and at most `most` examples
    are broken beyond it, and where one fell, since then all are played.
    """
    covered, audits, truths = 0, 0, []
    with Store.open(f"sqlite:///{published_database()}", read_only=True) as store:
        every = [load_results(store, board) for board in leaderboards(store)]
    for results in every:
        for name, result in results.defenses.items():
            left, robust = result.robust(cheap), result.robust()
            n, population = len(left), int(left.sum())
            m, truth = audit_size(population, n), int((left & ~robust).sum())
            truths.append(truth)
            for draw in range(200):
                order = audit_order(n, results.leaderboard.id, name, str(draw))
                sample = [item for item in order if left[item]][:m]
                audit = Audit(int((~robust[sample]).sum()), m, population, n)
                assert not audit.passed or audit.most <= BOUND * n
                covered += not audit.passed or truth <= audit.most
                audits += 1
    assert audits >= 200
    assert max(truths) > min(truths) > 0
    assert covered / audits >= 0.93
