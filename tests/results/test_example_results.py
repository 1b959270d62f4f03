"""Costly defenses: they are evaluated on the first few examples and not ranked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.core.cells import COSTLY_FORWARDS, FEW_EXAMPLES
from bench.core.errors import BenchError
from bench.evaluation import plan
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.results.defense_report import defense_report
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard, leaderboards
from bench.results.ranking import load_ranking
from bench.store import CertificateRow, Store
from tests.fixtures.small_store import World, first, some
from tests.results.small_results import ranking_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


@pytest.fixture
def world(store: Store) -> World:
    """`plain` on 600 examples, `costly` on the first 128 of them; a clean pass and one attack."""
    large = World(store)
    large.threat("linf", "pgd")
    large.attack("pgd")
    large.defense("plain")
    large.clean("plain", first(600))
    large.evaluate("plain", "pgd", some(600, *range(200)))
    small = replace(large, n=FEW_EXAMPLES, examples="the first few")
    small.defense("costly", forwards=COSTLY_FORWARDS + 1)
    small.clean("costly", first(120, FEW_EXAMPLES))
    small.evaluate("costly", "pgd", some(FEW_EXAMPLES, 0, 1, 2))
    return large


def test_a_costly_defense_is_listed_with_its_own_n_and_without_a_rank(
    store: Store, world: World
) -> None:
    plain, costly = ranking_of(store, "linf")
    assert (plain.defense, plain.rank and plain.rank.best, plain.low_n) == ("plain", 1, False)
    assert (plain.robust.k, plain.robust.n) == (400, 600)
    assert (costly.defense, costly.rank, costly.low_n) == ("costly", None, True)
    assert (costly.clean.k, costly.robust.k, costly.robust.n) == (120, 117, FEW_EXAMPLES)
    assert "the first 128 of 600 examples" in costly.note
    assert costly.coverage.done == costly.coverage.required == 1
    assert [b.n for b in leaderboards(store)] == [600], "it has no leaderboard of its own"


def test_the_leaderboards_of_two_orders_are_apart(store: Store, world: World) -> None:
    """`costly` was evaluated on the first 128 of the balanced order and is on that one alone."""
    file = replace(world, examples="the file", order="file")
    file.clean("plain", first(600))
    file.evaluate("plain", "pgd", some(600, *range(500)))
    balanced, other = leaderboards(store)
    assert (balanced.example_order, other.example_order) == ("balanced", "file")
    assert find_leaderboard(store, "linf") == find_leaderboard(store, None, "full", "balanced")
    assert find_leaderboard(store, "linf", order="file") == other
    rows = {order: json_report(store, "linf", order=order) for order in ("balanced", "file")}
    found = {order: {r["defense"]: r["robust"]["k"] for r in report["ranking"]}
             for order, report in rows.items()}  # fmt: skip
    assert found == {"balanced": {"plain": 400, "costly": 117}, "file": {"plain": 100}}
    assert {order: report["examples"]["order"] for order, report in rows.items()} == {
        "balanced": "balanced", "file": "file",
    }  # fmt: skip
    with pytest.raises(BenchError, match="--order is 'x'; use one of balanced, file"):
        find_leaderboard(store, "linf", order="x")


def test_an_order_without_a_leaderboard_is_named(store: Store, world: World) -> None:
    with pytest.raises(BenchError, match="no leaderboard of the file order; `bench run --order"):
        find_leaderboard(store, "linf", order="file")


def test_the_reports_include_a_costly_defense(store: Store, world: World) -> None:
    found = json_report(store, "linf")
    by_name = {row["defense"]: row for row in found["ranking"]}
    assert by_name["costly"]["robust"]["n"] == FEW_EXAMPLES
    cell = next(s for s in found["matrix"] if s["defense"] == "costly")
    assert (cell["robust"]["k"], cell["robust"]["n"]) == (117, FEW_EXAMPLES)
    assert defense_report(store, find_leaderboard(store, "linf"), "costly").row.robust.k == 117


def test_a_costly_defense_on_all_examples_is_no_exception(store: Store, world: World) -> None:
    world.clean("costly", first(600))
    world.evaluate("costly", "pgd", some(600, *range(50)))
    row = next(row for row in ranking_of(store, "linf") if row.defense == "costly")
    assert (row.robust.k, row.robust.n) == (550, 600)
    assert row.rank is not None


def test_the_certificates_of_a_costly_defense_are_checked(store: Store, world: World) -> None:
    digest = world.digests["defense", "costly"]
    proved = np.array(some(FEW_EXAMPLES, 1, 7))
    world.certifier("prover")
    whose = ("costly", digest, "prover", world.digests["certifier", "prover"])
    found = CertificateRow(*whose, exact=False, certified=proved)
    store.record_certificate(world.threats["linf"], "the first few", found)
    row = next(row for row in ranking_of(store, "linf") if row.defense == "costly")
    assert row.certified is not None
    assert (row.certified.count.k, row.certified.count.n) == (2, FEW_EXAMPLES)
    crossed = next(flag for flag in row.flags if flag.name == "soundness-error")
    assert crossed.state == "raised"
    assert "number 1" in crossed.evidence


def test_without_other_defenses_the_few_examples_have_a_leaderboard(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as alone:
        few = World(alone, n=FEW_EXAMPLES)
        few.threat("linf", "pgd")
        few.attack("pgd")
        few.defense("costly", forwards=COSTLY_FORWARDS + 1)
        few.clean("costly", first(FEW_EXAMPLES, FEW_EXAMPLES))
        few.evaluate("costly", "pgd", first(0, FEW_EXAMPLES))
        assert [leaderboard.n for leaderboard in leaderboards(alone)] == [FEW_EXAMPLES]
        (row,) = load_ranking(alone, find_leaderboard(alone, "linf"))
        assert (row.rank, row.provisional) == (None, False)
        assert "Low n" in row.note


@pytest.mark.parametrize(
    ("forwards", "asked", "found"),
    [
        (1, None, 500),
        (COSTLY_FORWARDS, None, 500),
        (COSTLY_FORWARDS + 1, None, FEW_EXAMPLES),
        (COSTLY_FORWARDS + 1, 300, 300),
    ],
)
def test_costly_defenses_get_the_first_few_examples_unless_more_are_requested(
    tmp_path: Path, forwards: int, asked: int | None, found: int
) -> None:
    registry = Registry.load(tmp_path / "no submissions")
    threat, digits = registry.threats["digits-linf"].value, registry.datasets["digits"].value
    defense = replace(registry.defenses["undefended"].value, forwards=forwards)
    assert plan.example_count(threat, defense, Selection(examples=asked), digits) == found
