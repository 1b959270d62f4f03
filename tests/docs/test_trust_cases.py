"""Every hostile or faulty case has tests that exist, and docs/trust-cases.md is up to date."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tools.trust_case_records import PARTS, TrustCase
from tests.tools.trust_cases import PAGE, ROOT, STATES, TRUST_CASES, missing, page

NAMED = sorted({test for case in TRUST_CASES for test in case.tests})


def test_the_cases_are_numbered_and_grouped() -> None:
    assert [case.number for case in TRUST_CASES] == list(range(1, 81))
    parts = [case.part for case in TRUST_CASES]
    assert parts == sorted(parts) and set(parts) == set(PARTS)
    assert sum(case.state == "holds" for case in TRUST_CASES) >= 76


@pytest.mark.parametrize("case", TRUST_CASES, ids=lambda case: str(case.number))
def test_a_case_names_tests_that_exist_or_says_why_it_does_not_hold(case: TrustCase) -> None:
    assert case.state in STATES
    assert case.tests if case.state == "holds" else case.reason
    assert [missing(test) for test in case.tests if missing(test)] == []


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("store/test_absent.py::test_x", "tests/store/test_absent.py is missing"),
        ("store/test_kill.py::test_x[a]", "tests/store/test_kill.py has no test_x"),
    ],
)
def test_a_test_that_is_gone_is_named(test: str, why: str) -> None:
    assert missing(test) == why


@pytest.mark.slow
def test_pytest_collects_every_named_test() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-m", ""]
    command += [f"tests/{test}" for test in NAMED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_page_in_the_docs_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.tools.trust_cases`"
