"""Order of packages, imports without torch, sizes of modules and functions, exceptions."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bench", "plugins", "leaderboard")
ORDER = (
    "core", "threats", "plugin", "registry", "data", "store", "results", "engine", "training",
    "referee", "sandbox", "evaluation", "contract", "submissions", "cli",
)  # fmt: skip
"""The packages of bench in import order: a module imports its own package or earlier ones."""
TORCH_FREE = {"core", "store", "results"}
"""Packages that never import torch."""
TORCH_FREE_MODULES = {
    "bench.threats.access", "bench.threats.suites", "bench.registry.submission",
    "bench.registry.weights_file", "bench.registry.card_index", "bench.submissions.templates",
    "bench.submissions.archive", "bench.cli.serve",
}  # fmt: skip
"""Modules of other packages that never import torch."""
READERS = {"bench.core", "bench.results", "bench.store"}
"""Packages of bench that the leaderboard may import."""


def modules(*packages: str) -> list[Path]:
    """All Python files of top-level packages."""
    found = [path for top in packages for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


def imports(path: Path) -> Iterator[str]:
    """Every module and name that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(name: str) -> str:
    """`engine` for `bench.engine.scheduler`; empty for a name outside `bench`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "bench" and len(parts) > 1 else ""


def dotted(path: Path) -> str:
    """`bench.engine` for bench/engine/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def own(path: Path) -> str:
    """The package of bench that a file belongs to."""
    return package(dotted(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a file, methods and nested ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def named(path: Path) -> str:
    """The path from the root of the repository."""
    return str(path.relative_to(ROOT))


def test_the_order_names_every_package() -> None:
    assert {own(path) for path in modules("bench")} - {""} == set(ORDER)


@pytest.mark.parametrize("path", modules("bench"), ids=named)
def test_imports_follow_the_order(path: Path) -> None:
    here = own(path)
    if not here:
        return
    allowed = set(ORDER[: ORDER.index(here) + 1])
    later = {p for name in imports(path) if (p := package(name)) in ORDER} - allowed
    assert later == set(), f"{named(path)} imports {later}, which come later in the order"


def test_bench_has_at_most_17_entries() -> None:
    top = {path.relative_to(ROOT / "bench").parts[0] for path in modules("bench")}
    assert len(top) <= 17, sorted(top)


def test_no_import_cycles_among_modules() -> None:
    # `bench` itself imports its functions when they are first used.
    known = {dotted(path): path for path in modules("bench") if own(path)}
    edges = {
        name: {
            n for n in imports(path) if n in known and n != name and not name.startswith(f"{n}.")
        }
        for name, path in known.items()
    }
    order = TopologicalSorter(edges)
    order.prepare()  # raises CycleError


def test_importing_bench_loads_no_other_module() -> None:
    done = without_torch("import bench, sys\nprint([n for n in sys.modules if 'bench.' in n])")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    for name in ("evaluate", "attack", "load_model"):
        assert "torch is not installed" in without_torch(f"import bench\nbench.{name}").stderr


@pytest.mark.parametrize("path", modules("plugins"), ids=named)
def test_plugins_import_bench_plugin_alone(path: Path) -> None:
    found = {name for name in imports(path) if name.split(".")[0] == "bench"}
    others = {name for name in found if not name.startswith("bench.plugin")}
    modules_inside = {
        name for name in found if (ROOT / Path(*name.split("."))).with_suffix(".py").exists()
    }
    assert others | modules_inside == set(), f"{named(path)} imports {others | modules_inside}"


@pytest.mark.parametrize("path", modules("leaderboard"), ids=named)
def test_the_leaderboard_imports_readers_alone(path: Path) -> None:
    allowed = tuple(READERS)
    others = {n for n in imports(path) if n.startswith("bench.") and not n.startswith(allowed)}
    assert others == set(), f"{named(path)} imports {others}"


@pytest.mark.parametrize(
    "path",
    [p for p in modules("bench") if own(p) in TORCH_FREE or dotted(p) in TORCH_FREE_MODULES]
    + modules("leaderboard"),
    ids=named,
)
def test_torch_free_modules_do_not_import_torch(path: Path) -> None:
    assert {
        name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision")
    } == set()


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocker())
"""


def without_torch(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process where torch cannot be imported."""
    command = [sys.executable, "-c", BLOCKED + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_blocked_torch_cannot_be_imported() -> None:
    assert "torch is not installed" in without_torch("import bench.threats.norms").stderr


def test_torch_free_modules_can_be_imported_without_torch() -> None:
    paths = [p for p in modules("bench") if own(p) in TORCH_FREE or dotted(p) in TORCH_FREE_MODULES]
    names = [dotted(path) for path in paths if "migrations" not in path.parts]
    done = without_torch(f"import {', '.join(names)}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["--help"], ["report", "--help"], ["leaderboard", "--help"]])
def test_help_is_printed_without_torch(command: list[str]) -> None:
    done = without_torch(f"import sys\nsys.argv = ['bench', *{command}]\n"
                         "from bench.cli import main\nmain()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_leaderboard_can_be_imported_without_torch() -> None:
    paths = [p for p in modules("leaderboard") if "views" not in p.parts and p.stem != "app"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    done = without_torch(f"import {', '.join(n.removesuffix('.__init__') for n in names)}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=named)
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=named)
def test_no_function_is_longer_than_60_lines(path: Path) -> None:
    long = [f.name for f in functions(path) if (f.end_lineno or 0) - f.lineno + 1 > 60]
    assert long == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    text = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (text.end_lineno or 0) - text.lineno + 1
    return lines


def test_functions_of_bench_are_short() -> None:
    lengths = sorted(code_lines(f) for path in modules("bench") for f in functions(path))
    assert statistics.median(lengths) <= 6
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 18


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=named)
def test_every_module_has_a_docstring(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{named(path)} has no docstring"


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=named)
def test_no_module_is_named_utils(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


CATCHERS = {
    "bench/contract/runner.py",
    "bench/engine/external_run.py",
    "bench/evaluation/attack_batches.py",
    "bench/evaluation/canaries.py",
    "bench/evaluation/certification.py",
    "bench/evaluation/diagnostics.py",
    "bench/evaluation/fresh_process.py",
    "bench/evaluation/memory_plugins.py",
    "bench/evaluation/worker.py",
    "bench/contract/defense_fixture.py",
    "bench/engine/fast_selftest.py",
    "bench/engine/model_access.py",
    "bench/registry/registry.py",
    "bench/submissions/architectures.py",
    "bench/sandbox/worker.py",
}
"""Modules that may catch all exceptions of plugin code; a comment there gives the reason."""


@pytest.mark.parametrize("path", modules(*PACKAGES), ids=named)
def test_only_expected_exceptions_are_caught(path: Path) -> None:
    handlers = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ExceptHandler)
    ]
    caught = {ast.unparse(handler.type) if handler.type else "" for handler in handlers}
    assert not caught & {"", "Exception"}
    assert "PLUGIN_EXCEPTIONS" not in caught or named(path) in CATCHERS
