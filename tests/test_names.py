"""No public top-level name of bench and leaderboard is defined in two modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "main": "the entry point of a program or page",
    "app": "the application object of a program, as typer and streamlit call it",
}
"""Names with one meaning in several modules -> the reason why they are defined more than once."""


def modules() -> Iterator[Path]:
    """All modules; Alembic prescribes the names in its migrations, so those are left out."""
    for package in ("bench", "leaderboard"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if not {"migrations", "__pycache__"} & set(path.parts):
                yield path


def defined(source: str) -> Iterator[str]:
    """Names of functions, classes and constants that a module defines at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
                yield from (part.id for part in parts if isinstance(part, ast.Name))


def public(source: str) -> set[str]:
    return {name for name in defined(source) if not name.startswith("_")}


def repeated() -> dict[str, list[str]]:
    """Public top-level name -> the modules that define it, where there are two or more."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for name in public(path.read_text()):
            places[name].append(path.relative_to(ROOT).as_posix())
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def test_no_public_name_is_defined_in_two_modules() -> None:
    found = {name: places for name, places in repeated().items() if name not in ALLOWED}
    assert found == {}, "\n".join(f"{name}: {', '.join(at)}" for name, at in found.items())


def test_the_exceptions_are_few_and_needed() -> None:
    assert len(ALLOWED) <= 10
    assert set(ALLOWED) <= set(repeated()), "remove exceptions that are no longer needed"


def test_every_kind_of_definition_is_found() -> None:
    source = "A = B = 1\nc: int = 2\nD, (e) = 3, 4\ndef f(): g = 1\nclass H: i = 1\n_j = 5\n"
    assert public(source) == {"A", "B", "c", "D", "e", "f", "H"}
