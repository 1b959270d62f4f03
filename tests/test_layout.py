"""Tests mirror the packages of bench; programs under tests/ hold no tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PROGRAMS = ("benchmarks", "tools", "fixtures")
"""Folders under tests/ that hold programs and fixtures."""

TESTED_BY = {
    "bench/cli/__main__.py": "tests/test_readme.py",
}
"""Module without a test file of its own name -> the file that tests it."""


def modules() -> list[Path]:
    """Modules of bench; packages' `__init__` files and database migrations are left out."""
    found = (path.relative_to(ROOT) for path in sorted((ROOT / "bench").rglob("*.py")))
    return [p for p in found if p.name != "__init__.py" and "migrations" not in p.parts]


def mirror(module: Path) -> Path:
    """tests/engine/test_scheduler.py for bench/engine/scheduler.py."""
    return Path("tests", *module.parts[1:-1], f"test_{module.name}")


def definitions(module: Path) -> set[str]:
    """Public names that a module defines at its top level."""
    found = set()
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def mentions(test: Path, module: Path) -> bool:
    """Whether a test file contains the module's dotted name or a public name of the module."""
    text = (ROOT / test).read_text()
    dotted = ".".join(module.with_suffix("").parts)
    return dotted in text or bool(definitions(module) & set(re.findall(r"\w+", text)))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_module_has_a_test_file(module: Path) -> None:
    test = Path(TESTED_BY.get(module.as_posix(), mirror(module)))
    assert (ROOT / test).is_file(), f"{test} is missing: add it, or name another in TESTED_BY"


@pytest.mark.parametrize("name", TESTED_BY)
def test_the_table_names_only_modules_without_a_test_file(name: str) -> None:
    module = Path(name)
    assert (ROOT / module).is_file(), f"{module} is gone: remove it from TESTED_BY"
    assert not (ROOT / mirror(module)).exists(), f"{mirror(module)} exists: remove {module}"
    assert mentions(Path(TESTED_BY[name]), module), f"{TESTED_BY[name]} does not mention {module}"


@pytest.mark.parametrize("folder", PROGRAMS)
def test_programs_stand_apart_from_tests(folder: str) -> None:
    assert list((TESTS / folder).rglob("test_*.py")) == []


def test_test_folders_mirror_packages() -> None:
    packages = {path.name for path in (ROOT / "bench").iterdir() if (path / "__init__.py").exists()}
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("*.py"))}
    assert folders <= packages | {*PROGRAMS, "plugins", "leaderboard", "docs"}
