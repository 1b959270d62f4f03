"""Which versions a row shows after code has changed: newer partial results hide nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete

from bench.core.cards import ThreatCard
from bench.core.cells import CellState, Culprit, Failure
from bench.core.protocols import LeaderboardProtocol
from bench.results.example_results import load_results
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.results.row_versions import History, shown_rows
from bench.store import EvidenceRow, PlannedCell, Store
from bench.store.attack_versions import VERSION, VERSION_SET
from bench.store.tables import CARDS
from tests.fixtures.small_store import World, first, outcomes
from tests.results.small_results import (
    ALL,
    FIVE,
    NONE,
    certify,
    change_all,
    complete,
    enter,
    flag_of,
    rows_of,
    sentences,
    shown_text,
)  # fmt: skip


def test_a_comment_in_one_attack_file_hides_no_row(five: World) -> None:
    """Finding 16: one cell evaluated with the new file hid that attack for all defenses."""
    complete(five, "other", first(100))
    five.attack("a3", version="with a comment")
    assert [row.rank for row in rows_of(five).values()] == [
        (1, 2, 1, ("other",)),
        (1, 2, 1, ("d",)),
    ]
    assert "0 of 5 required attacks evaluated with newer code" in sentences(rows_of(five)["d"])
    five.evaluate("other", "a3", first(100))
    d, other = rows_of(five)["d"], rows_of(five)["other"]
    assert (d.provisional, d.coverage.done, d.robust.k) == (False, 5, 500)
    assert "with an older version of a3" in sentences(d)
    assert other.versions is None
    # Equal figures of different versions are compared, and not called tied.
    assert (d.rank, other.rank) == ((1, 2, 1, ()), (1, 2, 1, ()))
    assert (d.apart, other.apart) == (("other",), ("d",))
    report = json_report(five.store)
    (pair,) = report["pairs"]
    assert (pair["tied"], pair["better"]) == (False, None)
    assert "different versions" in pair["note"]
    assert [row["separation"] for row in report["ranking"]] == [None, None]
    assert "never called tied: d; other." in shown_text(five)
    five.evaluate("d", "a3", first(100))
    assert [row.rank for row in rows_of(five).values()] == [
        (1, 2, 1, ("other",)),
        (1, 2, 1, ("d",)),
    ]
    assert sentences(rows_of(five)["d"]) == ""


def test_newer_partial_results_are_named_and_change_no_figure(five: World) -> None:
    change_all(five, "2")
    for done, name in enumerate(FIVE[:4], 1):
        five.evaluate("d", name, first(300))
        row = rows_of(five)["d"]
        assert (row.robust.k, row.rank) == (500, (1, 1, 1, ()))
        assert f"{done} of 5 required attacks evaluated with newer code" in sentences(row)
    five.evaluate("d", "a5", first(300))
    row = rows_of(five)["d"]
    assert (row.robust.k, row.versions) == (300, None)


def test_the_newest_complete_set_is_shown_of_three(five: World) -> None:
    for version, broken in (("2", 200), ("3", 300)):
        change_all(five, version)
        for name in FIVE[: 5 if version == "2" else 4]:
            five.evaluate("d", name, first(broken))
    assert rows_of(five)["d"].robust.k == 400


def test_an_attack_put_back_as_it_was_shows_its_results_again(five: World) -> None:
    five.attack("a1", version="2")
    five.evaluate("d", "a1", first(300))
    assert rows_of(five)["d"].robust.k == 300
    five.attack("a1", version="1")
    row = rows_of(five)["d"]
    assert (row.robust.k, row.versions) == (500, None)


def test_a_renamed_parameter_hides_nothing_and_the_old_steps_count(world: World) -> None:
    """The number of steps is that of the version that was evaluated."""
    world.attack("pgd", steps=40, parameters={"steps": 40})
    enter(world, "d", ALL, NONE)
    world.evaluate("d", "pgd", first(200), step=np.where(first(200), 39, -1))
    late = flag_of(world, "not-converged")
    assert late.state == "raised"
    world.attack("pgd", version="2", steps=400, parameters={"iterations": 400})
    assert flag_of(world, "not-converged") == late
    assert rows_of(world)["d"].coverage.done == 2
    card = load_results(world.store, find_leaderboard(world.store, "linf")).defenses["d"]
    assert card.attacks["pgd"].card.steps == 40


@pytest.fixture
def banked(store: Store) -> World:
    """A threat model with two transfer attacks from the public surrogate `bank`."""
    world = World(store)
    world.threat("linf", "t1", "t2", "pgd")
    protocol = LeaderboardProtocol(("pgd", "t1", "t2"), surrogates={"standard": "bank"})
    (card,) = store.cards(ThreatCard)
    store.record_cards([card.model_copy(update={"protocol": protocol})])
    world.attack("pgd")
    for name in ("t1", "t2"):
        world.attack(name, source="standard")
    return world


def transfer(world: World, defense: str, attack: str, broken: Any) -> None:
    source = world.digests["defense", "bank"]
    world.record(world.cell(defense, attack, source_digest=source), outcomes(broken))


def test_a_changed_surrogate_hides_no_row_and_mixes_with_no_older_result(banked: World) -> None:
    for name in ("d", "e"):
        banked.defense("bank")
        complete(banked, name, first(50), attacks=("pgd",))
        for attack in ("t1", "t2"):
            transfer(banked, name, attack, first(100))
    assert rows_of(banked)["d"].versions is None
    assert rows_of(banked)["d"].rank == (1, 2, 1, ("e",))
    banked.defense("bank", version="trained anew")
    transfer(banked, "d", "t1", first(300))
    row = rows_of(banked)["d"]
    assert (row.robust.k, row.rank) == (500, (1, 2, 1, ("e",)))
    assert "older version of t1, t2; 1 of 3 required" in sentences(row)
    transfer(banked, "d", "t2", first(300))
    row = rows_of(banked)["d"]
    assert (row.robust.k, row.rank, row.versions) == (300, (2, 2, 2, ()), None)
    assert rows_of(banked)["e"].apart == ("d",)


def test_a_changed_diagnostic_keeps_its_warning_and_says_that_it_is_of_older_code(
    world: World,
) -> None:
    world.diagnostic("zero-gradients")
    enter(world, "d", ALL, NONE, NONE)
    source = world.digests["diagnostic", "zero-gradients"]
    zero = EvidenceRow("zero-gradients", "raised", "32 of 32 are zero.", source)
    world.store.record_evidence("d", world.digests["defense", "d"], world.examples, zero)
    assert rows_of(world)["d"].verdict == "suspect"
    world.diagnostic("zero-gradients", source="with a comment")
    assert rows_of(world)["d"].verdict == "suspect"
    assert flag_of(world, "zero-gradients").evidence == (
        "32 of 32 are zero. Found by an older version of this check."
    )


def test_a_changed_certifier_keeps_its_certificates_and_says_so(world: World) -> None:
    enter(world, "d", ALL, NONE, NONE)
    certify(world, first(400))
    assert "older" not in json_report(world.store)["ranking"][0]["certified"]
    world.certifier("linear", source="with a comment")
    found = rows_of(world)["d"].certified
    assert found is not None and (found.count.k, found.older) == (400, True)
    assert json_report(world.store)["ranking"][0]["certified"]["older"] is True
    assert "certified by an older version of linear, " in flag_of(world, "soundness-error").evidence


@pytest.mark.parametrize("change", ["new code", "other weights", "a build that fails"])
def test_a_row_of_an_older_defense_stays_until_the_newer_one_is_complete(
    five: World, change: str
) -> None:
    old = five.digests["defense", "d"][:12]
    five.defense("d", version=change)
    new = five.digests["defense", "d"][:12]
    five.clean("d", ALL)
    if change == "a build that fails":
        cell = five.cell("d", "a1")
        five.plan(cell)
        lease = five.store.lease(cell.key, "away@another-host")
        assert lease is not None
        five.store.fail(lease, Failure(Culprit.PLUGIN, "No weights."))
        assert "it failed: No weights" in sentences(rows_of(five)["d"])
    else:
        five.evaluate("d", "a1", first(300))
        assert f"its present version {new}" not in shown_text(five)
        assert "1 of 5 required attacks are evaluated" in sentences(rows_of(five)["d"])
    row = rows_of(five)["d"]
    assert (row.robust.k, row.rank) == (500, (1, 1, 1, ()))
    assert f"Shown with version {old} of the defense" in sentences(row)
    for name in FIVE:
        if name != "a1" or change == "a build that fails":
            five.evaluate("d", name, first(300))
    row = rows_of(five)["d"]
    assert row.robust.k == 300
    assert f"Its version {old} is not shown: of it 5 of 5 required" in sentences(row)


def test_an_incomplete_row_of_the_present_defense_is_shown_where_no_older_one_is_complete(
    world: World,
) -> None:
    enter(world, "d", ALL, first(100))
    world.defense("d", version="2")
    world.clean("d", ALL)
    world.evaluate("d", "fgsm", first(200))
    row = rows_of(world)["d"]
    assert (row.robust.k, row.provisional) == (400, True)
    assert "is not shown: of it 1 of 2 required" in sentences(row)


def test_an_incomplete_row_keeps_the_results_of_attacks_that_changed(world: World) -> None:
    enter(world, "d", ALL, first(100))
    world.attack("fgsm", steps=1, version="2")
    row = rows_of(world)["d"]
    assert (row.robust.k, row.coverage.done) == (500, 1)


def test_a_follow_up_attack_of_an_older_version_still_answers_its_warning(store: Store) -> None:
    world = World(store)
    world.threat("linf", "fgsm", "pgd", follow_ups={"decision-based attack": ("hop",)})
    world.attack("fgsm", steps=1)
    world.attack("pgd")
    world.attack("hop", "labels")
    world.diagnostic("zero-gradients")
    enter(world, "d", ALL, NONE, first(100))
    source = world.digests["diagnostic", "zero-gradients"]
    zero = EvidenceRow("zero-gradients", "raised", "All are zero.", source)
    world.store.record_evidence("d", world.digests["defense", "d"], world.examples, zero)
    world.evaluate("d", "hop", first(103))
    before = rows_of(world)["d"]
    assert (before.rank, before.verdict, before.robust_ranked.k) == ((1, 1, 1, ()), "sound", 497)
    world.attack("hop", "labels", version="2")
    row = rows_of(world)["d"]
    assert (row.rank, row.verdict, row.robust_ranked.k) == ((1, 1, 1, ()), "sound", 497)
    assert "older version of hop; 0 of 2 required" in sentences(row)


def test_without_a_record_of_versions_older_complete_rows_are_shown(five: World) -> None:
    """A database from before versions were kept has the present cards alone."""
    change_all(five, "2")
    with five.store.writing() as connection:
        kinds = (VERSION, VERSION_SET)
        connection.execute(delete(CARDS).where(CARDS.c.kind.in_(kinds)))
    row = rows_of(five)["d"]
    assert (row.robust.k, row.rank) == (500, (1, 1, 1, ()))
    result = load_results(five.store, find_leaderboard(five.store, "linf")).defenses["d"]
    assert result.attacks["a1"].card.steps is None, "the steps of that version are not known"


def test_a_larger_radius_is_compared_in_the_same_version_of_the_attack_alone(world: World) -> None:
    """A weaker version within the larger radius would look like masked gradients."""
    world.threat("far", "pgd", eps=0.4)
    enter(world, "d", ALL, NONE, first(300))
    world.evaluate("d", "pgd", first(200), threat="far")
    assert flag_of(world, "larger-bound-does-not-help").state == "raised"
    world.attack("pgd", version="2")
    world.evaluate("d", "pgd", first(300))
    assert flag_of(world, "larger-bound-does-not-help").state == "not tested"


def test_the_planning_of_a_run_reads_the_present_versions_alone(five: World) -> None:
    five.attack("a1", version="2")
    leaderboard = find_leaderboard(five.store, "linf")
    now = load_results(five.store, leaderboard, current_only=True)
    assert set(now.defenses["d"].attacks) == set(FIVE[1:])
    five.defense("d", version="2")
    assert load_results(five.store, leaderboard, current_only=True).defenses == {}


def test_in_a_cascade_the_newest_whole_cascade_is_shown(world: World) -> None:
    def cascade(fgsm: int, pgd: int | None) -> None:
        before = world.evaluate("d", "fgsm", first(fgsm), mode="rank")
        if pgd is not None:
            left = np.arange(fgsm, 600, dtype=np.int32)
            broken = first(pgd, len(left))
            world.evaluate("d", "pgd", broken, items=left, mode="rank", before=before.key)

    def robust() -> int:
        leaderboard = find_leaderboard(world.store, None, "rank")
        rows = load_results(world.store, leaderboard).defenses["d"]
        return int(rows.robust().sum())

    world.defense("d")
    world.clean("d", ALL)
    cascade(200, 100)
    assert robust() == 300
    world.attack("fgsm", steps=1, version="2")
    cascade(10, None)
    assert robust() == 300
    cascade_again = world.cell("d", "fgsm", mode="rank")
    left = np.arange(10, 600, dtype=np.int32)
    world.evaluate("d", "pgd", first(20, 590), items=left, mode="rank", before=cascade_again.key)
    assert robust() == 570


def test_an_attack_that_is_not_applicable_in_any_version_stays_so(world: World) -> None:
    enter(world, "d", ALL, first(100))
    world.plan(world.cell("d", "pgd"), CellState.NOT_APPLICABLE, "Its own surrogate.")
    world.attack("pgd", steps=40, version="2")
    row = rows_of(world)["d"]
    assert (row.rank, row.coverage.required, row.versions) == ((1, 1, 1, ()), 1, None)


def test_every_row_shows_one_version_of_each_attack(five: World) -> None:
    """No figure mixes the outcomes of two versions, whatever was evaluated in which order."""
    rng = np.random.default_rng(0)
    for step in range(40):
        name = FIVE[rng.integers(5)]
        if rng.random() < 0.4:
            five.attack(name, version=str(step))
        elif ("attack", name) in five.digests:
            cell = five.cell("d", name)
            five.store.plan([PlannedCell(cell)])
            lease = five.store.lease(cell.key, "away@another-host")
            if lease is not None:
                five.store.release(lease)
                five.evaluate("d", name, first(int(rng.integers(600))))
        leaderboard = find_leaderboard(five.store, "linf")
        rows = five.store.cells()
        found = shown_rows(History.load(five.store, leaderboard, rows), rows)["d"]
        for attack, cells in found.cells.items():
            assert len({row.cell.attack_digest for row in cells}) == 1, attack
        assert rows_of(five)["d"].coverage.done == 5, "a row that was complete stays complete"
