"""The table of systems misses no row, and says what the plugins and the tests say."""

from __future__ import annotations

import pytest

from tests.tools.systems import LIST, ROOT, TABLE, files, oracles, table


@pytest.mark.parametrize("row", LIST)
def test_every_row_of_the_list_is_built_and_has_a_test(row: str) -> None:
    built, held = files(), oracles()
    assert built.get(row), f"no plugin declares {row}"
    assert all((ROOT / path).is_file() for path in built[row])
    assert held.get(row), f"no test is marked with {row}"


def test_the_table_is_the_one_in_the_docs() -> None:
    assert TABLE.read_text() == table(), "run `python -m tests.tools.systems`"
