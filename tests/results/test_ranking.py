"""Ranks: ranges from paired tests, and rows without a rank."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core.cards import Claim
from bench.core.cells import CellState, Culprit, Failure
from bench.store import EvidenceRow, Store
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter, matrix_of, ranking_of, rows_of


def test_ranks_are_ranges_from_paired_tests(world: World) -> None:
    enter(world, "strong", ALL, NONE, first(100))
    enter(world, "peer", ALL, NONE, first(103))
    enter(world, "weak", ALL, NONE, first(400))
    found = [(row.defense, row.rank) for row in ranking_of(world.store, None)]
    assert found == [
        ("strong", (1, 2, 1, ("peer",))),
        ("peer", (1, 2, 1, ("strong",))),
        ("weak", (3, 3, 2, ())),
    ]


def test_a_row_states_how_many_others_it_is_tied_with(world: World) -> None:
    enter(world, "strong", ALL, NONE, first(100))
    enter(world, "peer", ALL, NONE, first(103))
    enter(world, "weak", ALL, NONE, first(400))
    enter(world, "part", ALL, NONE)
    found = {row.defense: row.tied for row in ranking_of(world.store, None)}
    assert found == {"strong": 1, "peer": 1, "weak": 0, "part": 0}


def test_an_attack_evaluated_on_one_defense_alone_changes_no_rank(world: World) -> None:
    """The required attacks give a tie; the figure over all attacks is a column of its own."""
    enter(world, "more", ALL, NONE, first(100))
    enter(world, "less", ALL, NONE, first(103))
    world.attack("extra")
    world.evaluate("more", "extra", first(400))
    more, less = ranking_of(world.store, None)
    assert (more.defense, more.rank, less.rank) == (
        "more",
        (1, 2, 1, ("less",)),
        (1, 2, 1, ("more",)),
    )
    assert (more.robust_required.k, more.robust.k, less.robust.k) == (500, 200, 497)
    assert (more.coverage, more.further, less.further) == (less.coverage, 1, 0)


def test_a_row_names_the_attacks_that_were_written_for_it(world: World) -> None:
    enter(world, "d", ALL, NONE, first(100))
    enter(world, "other", ALL, NONE, first(100))
    world.attack("against-d", written_for=("d",))
    for name in ("d", "other"):
        world.evaluate(name, "against-d", first(100))
    found = {row.defense: row.adaptive for row in ranking_of(world.store, None)}
    assert found == {"d": ("against-d",), "other": ()}


def test_a_defense_without_an_applicable_required_attack_is_not_compared(world: World) -> None:
    """Its clean accuracy is not a worst case, whatever other attacks were run."""
    enter(world, "whole", ALL, NONE, first(100))
    enter(world, "spared", ALL)
    for attack in ("fgsm", "pgd"):
        world.plan(world.cell("spared", attack), CellState.NOT_APPLICABLE, "Nothing to climb.")
    world.attack("extra")
    world.evaluate("spared", "extra", first(20))
    whole, spared = ranking_of(world.store, None)
    assert (whole.defense, whole.rank, spared.rank) == ("whole", (1, 1, 1, ()), None)
    assert "No required attack applies" in spared.note


def test_a_cascade_that_leaves_the_required_figure_unknown_gives_no_rank(world: World) -> None:
    world.threat("linf", "pgd")
    for name in ("known", "unknown"):
        world.defense(name)
        world.clean(name, ALL)
    world.evaluate("known", "pgd", first(300), mode="rank")
    before = world.evaluate("unknown", "fgsm", first(200), mode="rank")
    left = np.arange(200, 600, dtype=np.int32)
    world.evaluate("unknown", "pgd", first(100, 400), items=left, mode="rank", before=before.key)
    known, unknown = ranking_of(world.store, None, "rank")
    assert (known.defense, known.rank, unknown.rank) == ("known", (1, 1, 1, ()), None)
    assert "before a required one ran on them" in unknown.note


def test_a_defense_without_a_required_attack_is_provisional(
    world: World,
) -> None:
    enter(world, "whole", ALL, first(100), first(300))
    enter(world, "part", ALL, first(100))
    whole, part = ranking_of(world.store, None)
    assert (whole.defense, whole.rank, whole.provisional) == ("whole", (1, 1, 1, ()), False)
    assert (part.rank, part.provisional, part.coverage.done, part.coverage.required) == (
        None,
        True,
        1,
        2,
    )
    assert "1 of 2 required" in part.note


@pytest.mark.parametrize("state", [CellState.SKIPPED, CellState.MISSING])
def test_a_skipped_or_missing_cell_has_no_figure(world: World, state: CellState) -> None:
    enter(world, "d", ALL, first(100))
    world.plan(world.cell("d", "pgd"), state, "No time.")
    row = rows_of(world)["d"]
    assert (row.rank, row.robust.k) == (None, 500)
    (cell,) = [s for s in matrix_of(world.store, None) if s.attack == "pgd"]
    assert (cell.state, cell.reason, cell.robust) == (str(state), "No time.", None)


def test_a_failed_cell_has_its_reason_and_no_figure(world: World) -> None:
    enter(world, "d", ALL, first(100))
    cell = world.cell("d", "pgd")
    world.plan(cell)
    lease = world.store.lease(cell.key, "away@another-host")
    assert lease is not None
    world.store.fail(lease, Failure(Culprit.PLUGIN, "It divided by zero."))
    (found,) = [s for s in matrix_of(world.store, None) if s.attack == "pgd"]
    assert (found.state, found.reason, found.robust) == ("failed", "It divided by zero.", None)
    assert rows_of(world)["d"].provisional


def test_a_required_attack_that_does_not_apply_is_not_required(world: World) -> None:
    enter(world, "d", ALL, first(100))
    world.plan(world.cell("d", "pgd"), CellState.NOT_APPLICABLE, "Its own surrogate.")
    row = rows_of(world)["d"]
    assert (row.rank, row.coverage.done, row.coverage.required) == ((1, 1, 1, ()), 1, 1)


def test_without_an_applicable_attack_there_is_no_rank(world: World) -> None:
    world.defense("d")
    world.clean("d", ALL)
    for attack in ("fgsm", "pgd"):
        world.plan(world.cell("d", attack), CellState.NOT_APPLICABLE, "Nothing to climb.")
    row = rows_of(world)["d"]
    assert (row.rank, row.provisional, row.strongest) == (None, True, None)


def test_without_a_clean_pass_there_are_no_counts(world: World) -> None:
    world.defense("d")
    world.evaluate("d", "fgsm", NONE)
    world.evaluate("d", "pgd", NONE)
    row = rows_of(world)["d"]
    assert (row.rank, row.robust.k, row.robust.n, row.robust.high) == (None, 0, 0, 1.0)
    assert "clean pass" in row.note


def test_with_few_examples_nothing_is_ranked(store: Store) -> None:
    """Clearly different defenses are ordered by their figures, without ranks."""
    world = World(store, n=499)
    world.threat("linf", "pgd")
    world.attack("pgd")
    for name, broken in (("bad", 400), ("good", 50)):
        world.defense(name)
        world.clean(name, first(499, 499))
        world.evaluate(name, "pgd", first(broken, 499))
    world.defense("part")
    world.clean("part", first(499, 499))
    world.plan(world.cell("part", "pgd"))
    good, bad, part = ranking_of(store, None)
    assert [row.defense for row in (good, bad, part)] == ["good", "bad", "part"]
    assert good.low_n and not good.provisional and part.provisional
    assert (good.rank, bad.rank, part.rank) == (None, None, None)
    assert good.note == bad.note and "fewer than 500" in good.note
    assert "Provisional" in part.note


def test_five_hundred_examples_are_enough_for_a_first_place(store: Store) -> None:
    world = World(store, n=500)
    world.threat("linf", "pgd")
    world.attack("pgd")
    world.defense("d")
    world.clean("d", first(500, 500))
    world.evaluate("d", "pgd", first(50, 500))
    (row,) = ranking_of(store, None)
    assert (row.rank, row.low_n, row.note) == ((1, 1, 1, ()), False, "")


def test_a_leaderboard_that_is_evidence_only_has_no_ranks(world: World) -> None:
    world.threat("shown", ranked=False)
    world.defense("d")
    world.clean("d", ALL)
    world.evaluate("d", "pgd", NONE, threat="shown")
    row = rows_of(world, "shown")["d"]
    assert row.rank is None
    assert "evidence" in row.note


def test_rows_without_a_rank_are_ordered_by_their_figures(store: Store) -> None:
    """By the ranked figure, the one over all attacks, and the name; incomplete ones last."""
    world = World(store, n=100)
    world.threat("linf", "pgd")
    for attack in ("pgd", "extra"):
        world.attack(attack)
    world.diagnostic("deterministic")
    broken = {"b": (20, 20), "a": (20, 20), "less": (20, 50), "more": (10, 60), "invalid": (1, 1)}
    for name, counts in broken.items():
        world.defense(name)
        world.clean(name, first(100, 100))
        for attack, count in zip(("pgd", "extra"), counts, strict=True):
            world.evaluate(name, attack, first(count, 100))
    source = world.digests["diagnostic", "deterministic"]
    moves = EvidenceRow("deterministic", "raised", "It moves.", source)
    world.store.record_evidence("invalid", world.digests["defense", "invalid"], "examples", moves)
    world.defense("part")
    world.clean("part", first(100, 100))
    world.evaluate("part", "extra", first(2, 100))
    order = [row.defense for row in ranking_of(store, None)]
    assert order == ["more", "a", "b", "less", "invalid", "part"]


def test_a_row_without_any_attack_counts_nothing(world: World) -> None:
    """Not even 0 of 600: nothing was attacked, so there is no robust example."""
    world.defense("d", Claim("linf", 0.5))
    world.clean("d", ALL)
    world.plan(world.cell("d", "pgd"))
    row = rows_of(world)["d"]
    counts = (row.robust, row.robust_required, row.robust_ranked)
    assert [(count.k, count.n) for count in counts] == [(0, 0)] * 3
    assert row.claim is not None
    assert (row.claim.verdict, row.claim.sentence) == (
        "not testable",
        "Claimed 50.0%; nothing is measured yet.",
    )


def test_without_a_clean_pass_no_figure_has_a_count(world: World) -> None:
    world.defense("d")
    world.evaluate("d", "pgd", first(7))
    row = rows_of(world)["d"]
    counts = (row.clean, row.robust, row.robust_required, row.robust_8bit)
    assert [(count.k, count.n) for count in counts] == [(0, 0)] * 4


def test_a_claim_at_the_end_of_the_interval_holds(world: World) -> None:
    """Only a claim above the whole interval is contradicted."""
    enter(world, "plain", ALL, NONE, first(300))
    high = rows_of(world)["plain"].robust.high
    for name, claimed in (("at", high), ("above", float(np.nextafter(high, 1)))):
        world.defense(name, Claim("linf", claimed))
        world.clean(name, ALL)
        world.evaluate(name, "fgsm", NONE)
        world.evaluate(name, "pgd", first(300))
    verdicts = {name: row.claim.verdict for name, row in rows_of(world).items() if row.claim}
    assert verdicts == {"at": "holds", "above": "below"}


def test_rows_are_apart_where_they_share_an_attack_in_two_versions(world: World) -> None:
    """Right: only rows that both have the attack, each row with all others of another version."""
    for name in ("old", "older", "new", "newer"):
        enter(world, name, ALL, NONE)
    for name in ("old", "older", "new"):
        world.evaluate(name, "pgd", first(100))
    enter(world, "without", ALL)
    world.evaluate("without", "pgd", first(100))
    world.plan(world.cell("without", "fgsm"), CellState.NOT_APPLICABLE, "Nothing to climb.")
    world.plan(world.cell("newer", "pgd"), CellState.NOT_APPLICABLE, "Its own surrogate.")
    assert {row.apart for row in ranking_of(world.store)} == {()}, "of one version"
    world.attack("fgsm", steps=1, version="2")
    for name in ("new", "newer"):
        world.evaluate(name, "fgsm", NONE)
    assert {name: row.apart for name, row in rows_of(world).items()} == {
        "old": ("new", "newer"), "older": ("new", "newer"),
        "new": ("old", "older"), "newer": ("old", "older"), "without": (),
    }  # fmt: skip
