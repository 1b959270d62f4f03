"""What a case of hostile or faulty input is, and how its tests are named."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = {
    "A": "Results of attacks", "B": "Behaviour of defenses", "C": "Behaviour of processes",
    "D": "Submissions", "E": "Runs and the database",
}  # fmt: skip
"""Letter of a part -> its heading."""


@dataclass(frozen=True)
class TrustCase:
    """One case: what happens, what must follow, and the tests that decide it."""

    number: int
    part: str
    """A key of PARTS."""
    case: str
    expected: str
    tests: tuple[str, ...] = ()
    """Ids of pytest nodes, without the leading `tests/`."""
    state: str = "holds"
    """`holds`, `partly` or `absent`."""
    reason: str = ""
    """Why it does not hold, or in which way it does; empty where the expectation says it all."""


def played(name: str) -> str:
    """The test that plays a hostile submission."""
    return f"sandbox/test_hostile.py::test_a_hostile_submission_ends_as_declared[{name}]"
