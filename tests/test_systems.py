"""Every system of the list has a file and a test, and docs/systems.md is up to date."""

from __future__ import annotations

import pytest

from tests.tools.systems import PAGE, ROOT, SYSTEMS, implementations, oracle_tests, page


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_a_file_and_a_test(system: str) -> None:
    files = implementations().get(system, [])
    assert files, f"no file implements {system}"
    assert all((ROOT / path).is_file() for path in files)
    assert oracle_tests().get(system), f"no test is marked with {system}"


def test_the_page_in_the_docs_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.tools.systems`"
