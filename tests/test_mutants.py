"""The mutation testing program: what it changes, and that a survivor is reported."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tools import mutants
from tests.tools.mutant_edits import edits
from tests.tools.mutants import Target, chosen, equivalent, report

SOURCE = '''
"""A module."""

LIMIT = 3


def inside(distance: float, radius: float = 1.0) -> bool:
    """Whether it is inside."""
    if distance < 0 or not radius:
        raise ValueError("negative 7 < 8")
    return distance - 2 <= radius
'''


def changes(source: str = SOURCE, *functions: str) -> list[str]:
    return [edit.mutant.change for edit in edits("a.py", source, functions)]


def test_each_kind_of_change_is_made_once_and_in_the_code_alone() -> None:
    assert sorted(changes()) == sorted([
        "1.0 => 2.0",  # constant
        "distance < 0 or not radius => distance < 0 and (not radius)",  # boolean
        "distance < 0 => distance <= 0",  # comparison
        "not radius => radius",
        "0 => 1",  # off by one
        "return distance - 2 <= radius => return None",  # return
        "distance - 2 <= radius => distance - 2 < radius",
        "distance - 2 => distance + 2",  # sign
        "2 => 3",
    ])  # fmt: skip


def test_a_mutant_differs_from_the_module_in_one_place() -> None:
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for edit in edits("a.py", SOURCE):
        assert ast.parse(edit.source)
        pairs = zip(plain, edit.source.splitlines(), strict=True)
        assert sum(one != other for one, other in pairs) == 1, edit.mutant.name


def test_a_condition_without_mutants_of_its_own_is_negated() -> None:
    source = "def f(x):\n    if x:\n        return 1\n"
    assert changes(source) == ["if x: => if not x:", "return 1 => return None", "1 => 2"]


def test_equal_changes_of_one_function_are_numbered() -> None:
    source = "def f(x):\n    return x + 1 + (x + 1)\n"
    found = [e.mutant for e in edits("a.py", source) if e.mutant.change == "1 => 2"]
    assert [mutant.number for mutant in found] == [0, 1]


def test_only_the_named_functions_are_changed() -> None:
    source = "def f():\n    return 1\n\ndef g():\n    return 2\n"
    assert changes(source, "g") == ["return 2 => return None", "2 => 3"]


def test_the_same_mutants_are_chosen_every_time_whatever_the_line_numbers() -> None:
    few = [edit.mutant for _, edit in chosen(20)]
    assert few == [edit.mutant for _, edit in chosen(20)] and len(few) == 20
    more = {edit.mutant for _, edit in chosen(40)}
    assert set(few) < more


def test_every_target_exists_with_its_functions_and_tests() -> None:
    for target in mutants.TARGETS:
        assert all((mutants.ROOT / path).is_file() for path in (target.path, *target.tests))
        names = {f.name for f in ast.walk(ast.parse((mutants.ROOT / target.path).read_text()))
                 if isinstance(f, ast.FunctionDef)}  # fmt: skip
        assert set(target.functions) <= names, target.path


def test_every_equivalent_mutant_still_exists_and_has_a_reason() -> None:
    made = {
        (e.mutant.path, e.mutant.function, e.mutant.change, e.mutant.number)
        for _, e in chosen(10**6)
    }  # fmt: skip
    for key, reason in equivalent().items():
        assert key in made, key
        assert len(reason.split()) >= 5, key


def test_equivalent_mutants_are_in_no_total() -> None:
    states = ["killed"] * 18 + ["survived"] * 2 + ["equivalent"] * 5
    found = report([{"state": state} for state in states])
    assert (found["mutants"], found["share_killed"]) == (25, 0.9)
    assert isinstance(found["survivors"], list) and len(found["survivors"]) == 7


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose test does not notice one change of its code."""
    root = tmp_path / "repository"
    (root / "bench").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "bench" / "__init__.py").write_text("")
    (root / "bench" / "rule.py").write_text("def rule(x):\n    return x < 10\n")
    (root / "tests" / "test_rule.py").write_text(
        "from bench.rule import rule\n\n\ndef test_rule():\n"
        "    assert rule(3) and not rule(11)\n"
    )  # fmt: skip
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    target = Target("bench/rule.py", ("tests/test_rule.py",))
    known = tmp_path / "equivalent.toml"
    known.write_text("")
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "TARGETS", (target,))
    monkeypatch.setattr(mutants, "EQUIVALENT", known)
    return root


def test_a_survivor_is_reported_with_its_line(tiny: Path) -> None:
    found: dict[str, Any] = mutants.survivors(100)
    told = {(one["change"], one["line"]) for one in found["survivors"]}
    assert told == {("x < 10 => x <= 10", 2), ("10 => 11", 2)}
    assert (found["mutants"], found["killed"], found["survived"]) == (3, 1, 2)
    assert (tiny / "bench" / "rule.py").read_text() == "def rule(x):\n    return x < 10\n"


def test_a_listed_survivor_is_equivalent(tiny: Path) -> None:
    mutants.EQUIVALENT.write_text(
        '[[mutant]]\nfile = "bench/rule.py"\nfunction = "rule"\nchange = "10 => 11"\n'
        'reason = "The rule is never asked about ten."\n'
    )
    found: dict[str, Any] = mutants.survivors(100)
    assert (found["survived"], found["equivalent"]) == (1, 1)
    assert found["share_killed"] == 0.5


def test_tests_that_fail_on_the_unchanged_code_are_refused(tiny: Path) -> None:
    (tiny / "tests" / "test_rule.py").write_text("def test_rule():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"fail on the unchanged code: tests/test_rule\.py"):
        mutants.survivors(1)


def test_a_mutant_that_never_ends_is_killed(tiny: Path) -> None:
    (tiny / "tests" / "test_rule.py").write_text("def test_rule():\n    while True: pass\n")
    assert mutants.run_tests(tiny, ("tests/test_rule.py",), 1.0) != 0


def test_the_test_that_noticed_a_mutant_runs_first_for_the_next_one(tiny: Path) -> None:
    """Right: a mutant that the same test notices costs that test alone, of however many."""
    (tiny / "tests" / "test_rule.py").write_text(
        "from pathlib import Path\n\nfrom bench.rule import rule\n\n\n"
        "def note(name):\n    with Path('ran').open('a') as file:\n        file.write(name)\n\n\n"
        "def test_a():\n    note('a')\n\n\ndef test_b():\n    note('b')\n    assert rule(3)\n"
    )
    known: dict[str, int] = {}
    for expected in ("ab", "b"):
        copy = tiny.parent / expected
        shutil.copytree(tiny, copy)
        (copy / "bench" / "rule.py").write_text("def rule(x):\n    return x > 10\n")
        assert mutants.run_tests(copy, ("tests/test_rule.py",), 60, known) == 1
        assert (copy / "ran").read_text() == expected
        known = {(copy / mutants.KILLER).read_text(): 1}
    assert known == {"tests/test_rule.py::test_b": 1}
