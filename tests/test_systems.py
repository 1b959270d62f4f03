"""Every system of the list has a file and a test, and docs/systems.md is up to date."""

from __future__ import annotations

import pytest

from tests.tools.system_rows import ROWS
from tests.tools.systems import (
    ABSENT,
    PAGE,
    PARTLY,
    ROOT,
    SYSTEMS,
    WORKS,
    implementations,
    oracle_tests,
    page,
    state,
)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_a_file_and_a_test(system: str) -> None:
    files = implementations().get(system, [])
    assert files, f"no file implements {system}"
    assert all((ROOT / path).is_file() for path in files)
    assert oracle_tests().get(system), f"no test is marked with {system}"


def test_the_list_has_every_system_and_every_reproduction_once() -> None:
    reproductions = [row for row in ROWS if row.startswith("RP")]
    assert len(ROWS) - len(reproductions) == 194 and len(reproductions) == 25
    assert all(ROWS.values()) and len(set(ROWS.values())) == len(ROWS)
    unknown = {*SYSTEMS, *implementations(), *oracle_tests()} - set(ROWS)
    assert not unknown, f"no row has the id {sorted(unknown)}: correct the mark or the table"


def test_a_row_works_only_with_a_file_and_a_marked_test() -> None:
    for row in ROWS:
        known = (row in implementations(), row in oracle_tests())
        wanted = {2: WORKS, 1: PARTLY, 0: ABSENT}[sum(known)]
        assert state(row) == wanted, row
        assert f"| {row} | {ROWS[row]} | {wanted} |" in page()


def test_the_page_in_the_docs_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.tools.systems`"
