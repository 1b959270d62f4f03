"""The house: imports point upstream, readers need no torch, rooms stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("bench", "plugins", "leaderboard")
CORRIDOR = (
    "records", "stats", "profile", "store", "board", "export", "entry", "weights", "box",
    "identity", "threat", "whole", "kit", "lesson", "plugin", "hooks", "source", "fields", "offer",
    "registry", "data", "target", "forms", "quicken", "problem", "guard", "recipe", "course",
    "train", "shelf", "sandbox", "cascade", "matrix", "engine", "events", "verify", "arena",
    "blame", "entrants", "proof", "diagnose", "school", "builder", "runner", "progress", "memory",
    "campaign", "doctor", "check", "scaffold", "archive", "submit", "serve", "cli",
)  # fmt: skip
"""Upstream first; a module imports only from above."""
DRY = {
    "records", "stats", "profile", "store", "board", "export", "entry", "weights", "scaffold",
    "archive",
}  # fmt: skip
"""Rooms without torch."""
OPEN = {"plugins": {"bench.plugin", "bench.kit"}}
READERS = {"bench.board", "bench.store", "bench.stats", "bench.records"}


def modules(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """`engine` for `bench.engine.table`; empty for anything outside `bench`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "bench" and len(parts) > 1 else ""


def own(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return room(".".join(parts))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_its_place_in_the_corridor() -> None:
    found = {own(path) for path in modules("bench")} - {"", "__init__"}
    assert found <= set(CORRIDOR), f"give {found - set(CORRIDOR)} a place in CORRIDOR"


@pytest.mark.parametrize("path", modules("bench"), ids=named)
def test_imports_point_upstream(path: Path) -> None:
    here = own(path)
    if here in ("", "__init__"):
        return
    above = set(CORRIDOR[: CORRIDOR.index(here) + 1])
    beyond = {r for name in imports(path) if (r := room(name)) in CORRIDOR} - above
    assert beyond == set(), f"{named(path)} imports {beyond}, which lie downstream"


def test_the_house_starts_without_work() -> None:
    body = ast.parse((ROOT / "bench" / "__init__.py").read_text()).body
    assert all(isinstance(node, ast.Expr) for node in body)


@pytest.mark.parametrize("path", modules("plugins"), ids=named)
def test_plugins_enter_by_the_door_of_strangers(path: Path) -> None:
    named_here = {name for name in imports(path) if name.split(".")[0] == "bench"}
    closed = {n for n in named_here if not n.startswith(("bench.plugin", "bench.kit"))} - {"bench"}
    assert closed == set(), (
        f"{named(path)} imports {closed}; plugins see bench.plugin and bench.kit"
    )


@pytest.mark.parametrize("path", modules("leaderboard"), ids=named)
def test_the_leaderboard_reads_and_nothing_else(path: Path) -> None:
    allowed = tuple(READERS)
    closed = {n for n in imports(path) if n.startswith("bench.") and not n.startswith(allowed)}
    assert closed == set(), f"{named(path)} imports {closed}"


@pytest.mark.parametrize(
    "path",
    [p for p in modules("bench") if own(p) in DRY] + modules("leaderboard"),
    ids=named,
)
def test_readers_never_name_torch(path: Path) -> None:
    assert {
        name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision")
    } == set()


BLOCKED = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Wall())
"""


def without_torch(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program where torch cannot be imported."""
    command = [sys.executable, "-c", BLOCKED + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_wall_stands() -> None:
    assert "torch is not installed" in without_torch("import bench.threat").stderr


def test_dry_rooms_start_where_torch_is_not_installed() -> None:
    done = without_torch(f"import {', '.join(f'bench.{name}' for name in sorted(DRY))}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["--help"], ["report", "--help"], ["leaderboard", "--help"]])
def test_help_starts_where_torch_is_not_installed(command: list[str]) -> None:
    if not (ROOT / "bench" / "cli.py").exists() and not (ROOT / "bench" / "cli").exists():
        pytest.skip("there is no command line yet")
    done = without_torch(f"import sys\nsys.argv = ['bench', *{command}]\n"
                         "from bench.cli import main\nmain()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_leaderboard_starts_where_torch_is_not_installed() -> None:
    paths = [p for p in modules("leaderboard") if "views" not in p.parts and p.stem != "app"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    done = without_torch(f"import {', '.join(n.removesuffix('.__init__') for n in names)}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", modules(*ROOMS), ids=named)
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", modules(*ROOMS), ids=named)
def test_no_function_is_longer_than_60_lines(path: Path) -> None:
    long = [f.name for f in functions(path) if (f.end_lineno or 0) - f.lineno + 1 > 60]
    assert long == []


@pytest.mark.parametrize("path", modules(*ROOMS), ids=named)
def test_every_module_begins_with_a_sentence(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{named(path)} has no first sentence"


@pytest.mark.parametrize("path", modules(*ROOMS), ids=named)
def test_no_room_is_a_lumber_room(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


CATCHERS = {
    "bench/registry.py", "bench/check/run.py", "bench/runner.py", "bench/quicken.py",
    "bench/proof.py", "bench/diagnose.py",
    "bench/engine/whole.py", "bench/sandbox/worker.py",
}  # fmt: skip
"""Where a stranger's code may raise anything, each with its reason beside it."""


@pytest.mark.parametrize("path", modules(*ROOMS), ids=named)
def test_only_expected_exceptions_are_caught(path: Path) -> None:
    handlers = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ExceptHandler)
    ]
    caught = {ast.unparse(handler.type) if handler.type else "" for handler in handlers}
    assert not caught & {"", "Exception"}
    assert "STRANGE" not in caught or named(path) in CATCHERS
