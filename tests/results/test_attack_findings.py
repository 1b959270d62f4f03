"""What was found about an attack is said beside its column, and nowhere without a finding."""

from __future__ import annotations

from typing import Any

from bench.results.attack_findings import ATTACK_OWNER, BATCH_CHECK, load_attack_warnings
from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard
from bench.store import EvidenceRow
from leaderboard import grid, tables
from tests.fixtures.small_store import World, first
from tests.results.small_results import ALL, NONE, enter, shown_text


def found(world: World, attack: str, finding: str) -> None:
    row = EvidenceRow(BATCH_CHECK, finding, "It depends on its batch.", "")
    world.store.record_evidence(ATTACK_OWNER, world.digests["attack", attack], "here", row)


def without_root(world: World) -> dict[str, Any]:
    """The JSON report without the root, which covers every finding."""
    return {name: value for name, value in json_report(world.store).items() if name != "root"}


def test_an_attack_that_depends_on_its_batch_is_marked_in_report_and_pages(world: World) -> None:
    enter(world, "d", ALL, NONE, first(100))
    before = without_root(world)
    found(world, "fgsm", "clear")
    assert without_root(world) == before
    found(world, "pgd", "raised")
    warnings = load_attack_warnings(world.store, find_leaderboard(world.store, "linf"))
    assert warnings == {"pgd": "It depends on its batch."}
    assert without_root(world) == {**before, "attack_checks": warnings}
    assert "pgd: It depends on its batch." in shown_text(world)
    page = grid.matrix_table([], [], ["fgsm", "pgd"], 1.0, warnings)
    assert "▲ pgd" in page and "▲ fgsm" not in page
    assert "It depends on its batch." in tables.attack_warning_list(warnings)
    assert tables.attack_warning_list({}) == ""


def test_the_finding_is_about_the_version_that_is_shown(world: World) -> None:
    enter(world, "d", ALL, NONE, first(100))
    found(world, "pgd", "raised")
    leaderboard = find_leaderboard(world.store, "linf")
    world.attack("pgd", version="mended")
    assert set(load_attack_warnings(world.store, leaderboard)) == {"pgd"}
    world.evaluate("d", "pgd", first(200))
    assert load_attack_warnings(world.store, leaderboard) == {}
