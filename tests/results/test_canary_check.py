"""A row is invalid where one of its cells was evaluated by code whose canaries failed."""

from __future__ import annotations

import pytest

from bench.results.canary_check import CANARY_CHECK, canary_check
from bench.results.leaderboards import find_leaderboard
from bench.results.ranking import load_ranking
from bench.store import EvidenceRow, Store
from tests.fixtures.small_store import World, first

RIGHT = EvidenceRow(CANARY_CHECK, "clear", "All 9 canaries came out right.", "code")
WRONG = EvidenceRow(CANARY_CHECK, "raised", "canary-band: pgd leaves 3.", "code")


@pytest.mark.parametrize(
    ("cells", "evidence", "state"),
    [
        ((), {}, "not tested"),
        (("a",), {}, "not tested"),
        (("a", "b"), {"a": RIGHT}, "not tested"),
        (("a", "b"), {"a": RIGHT, "b": RIGHT}, "clear"),
        (("a", "b"), {"a": RIGHT, "b": WRONG}, "raised"),
        (("a", "b"), {"b": WRONG}, "raised"),
        (("a",), {"other": WRONG, "a": RIGHT}, "clear"),
    ],
)
def test_one_wrong_cell_is_enough_and_all_must_be_recorded(
    cells: tuple[str, ...], evidence: dict[str, EvidenceRow], state: str
) -> None:
    assert canary_check(cells, evidence).state == state


@pytest.mark.parametrize("wrong", ["fgsm", "pgd", ""])
def test_a_row_with_a_marked_cell_is_invalid_and_names_the_canary(
    world: World, store: Store, wrong: str
) -> None:
    for name in ("marked", "other"):
        world.defense(name)
        world.clean(name, first(500))
        for attack in ("fgsm", "pgd"):
            cell = world.evaluate(name, attack, first(100))
            found = WRONG if (name, attack) == ("marked", wrong) else RIGHT
            store.record_evidence(name, cell.key, cell.examples, found)
    rows = {row.defense: row for row in load_ranking(store, find_leaderboard(store, "linf"))}
    assert rows["other"].verdict == "sound"
    assert rows["marked"].verdict == ("invalid" if wrong else "sound")
    (check,) = (check for check in rows["marked"].flags if check.name == CANARY_CHECK)
    assert ("canary-band" in check.evidence) == bool(wrong)
