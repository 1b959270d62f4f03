"""The table of hostile and faulty cases: what must follow, and the tests that decide it.

`python -m tests.tools.trust_cases` writes docs/trust-cases.md; tests/docs/test_trust_cases.py
compares it, and checks that every named test exists.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

from tests.tools.trust_case_records import PARTS, TrustCase
from tests.tools.trust_cases_of_plugins import ATTACK_RESULTS, DEFENSES, PROCESSES
from tests.tools.trust_cases_of_runs import RUNS, SUBMISSIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trust-cases.md"
TRUST_CASES: tuple[TrustCase, ...] = (
    *ATTACK_RESULTS, *DEFENSES, *PROCESSES, *SUBMISSIONS, *RUNS,
)  # fmt: skip
"""All cases, in the order of their numbers."""

HEAD = """# Hostile and faulty cases

What the project must withstand, and the tests that decide it. Written by
`python -m tests.tools.trust_cases`. {count} cases: {totals}.
"""
COLUMNS = """
| | case | expected | state | tests |
|---|---|---|---|---|
"""


def page() -> str:
    """The text of docs/trust-cases.md."""
    found = Counter(case.state for case in TRUST_CASES)
    totals = ", ".join(f"{found[state]} {word}" for state, word in STATES.items() if found[state])
    text = HEAD.format(count=len(TRUST_CASES), totals=totals)
    for letter, title in PARTS.items():
        rows = [row(case) for case in TRUST_CASES if case.part == letter]
        text += f"\n## {title}\n{COLUMNS}" + "\n".join(rows) + "\n"
    return text


STATES = {"holds": "hold", "partly": "hold in part", "absent": "absent"}
"""State -> how it is counted."""


def row(case: TrustCase) -> str:
    """The line of one case."""
    state = f"{case.state}. {case.reason}" if case.reason else case.state
    tests = ", ".join(link(test) for test in case.tests)
    return f"| {case.number} | {case.case} | {case.expected} | {state} | {tests} |"


def link(test: str) -> str:
    """A Markdown link to the file of a test, relative to the docs folder."""
    path, _, name = test.partition("::")
    words = name.removeprefix("test_").replace("_", " ").replace("[", ": ").replace("]", "")
    return f"[{words}](../tests/{path})"


def missing(test: str) -> str:
    """Why pytest cannot find a named test, apart from its parameter; empty where it can."""
    path, _, name = test.partition("::")
    file = ROOT / "tests" / path
    if not file.is_file():
        return f"tests/{path} is missing"
    function = re.sub(r"\[.*", "", name)
    return "" if function in defined_names(file) else f"tests/{path} has no {function}"


@cache
def defined_names(file: Path) -> frozenset[str]:
    """Names of the tests that a file defines at its top level."""
    nodes = ast.parse(file.read_text()).body
    named = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.Assign):
            named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(named)


if __name__ == "__main__":
    PAGE.write_text(page())
