"""A new plugin from `bench new` runs and passes its checks before anything is changed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bench.contract import check, runner
from bench.core.errors import BenchError
from bench.registry.registry import Registry
from bench.registry.submission import read_submission
from bench.submissions import templates

ROOT = Path(__file__).parents[2]
KINDS = ["attack", "defense", "threat"]


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: str = request.param
    return templates.write_template(kind, f"my-{kind}.2", tmp_path_factory.mktemp("new"))


def test_a_new_plugin_passes_all_checks(place: Path) -> None:
    results = runner.run_checks(place, Registry.without_submissions())
    assert len(results) > 8
    assert [r for r in results if r.outcome is check.CheckOutcome.FAIL] == []
    assert any(r.check == "is-registered" for r in results)


def test_a_new_plugin_is_listed_as_a_submission(place: Path) -> None:
    card = read_submission(place).card
    assert (card.name, card.version) == (place.name, 1)
    assert place.name in Registry.load(place.parent).submissions


def test_a_new_plugin_is_registered_with_the_flag(place: Path) -> None:
    registry = Registry.load(place.parent, allow_unsandboxed=True)
    assert registry.problems == []
    assert registry.find(read_submission(place).card.kind, place.name).folder == place


def test_a_new_plugin_is_short_and_passes_the_linter(place: Path) -> None:
    plugin = place / "plugin.py"
    assert len(plugin.read_text().splitlines()) <= 45
    for tool in (["ruff", "check", "--no-cache"], ["ruff", "format", "--check", "--no-cache"]):
        config = ["--config", str(ROOT / "pyproject.toml")]
        command = [sys.executable, "-m", *tool, *config, str(plugin)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_kind_is_reported_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="Did you mean 'defense'"):
        templates.write_template("defence", "mine", tmp_path)


@pytest.mark.parametrize("name", ["Mine", "a b", "../up", "", "x" * 65, ".hidden"])
def test_an_invalid_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError, match="1 to 64"):
        templates.write_template("attack", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    place = templates.write_template("attack", "mine", tmp_path)
    (place / "plugin.py").write_text("my own")
    with pytest.raises(BenchError, match="exists already"):
        templates.write_template("attack", "mine", tmp_path)
    assert (place / "plugin.py").read_text() == "my own"


def test_a_name_of_digits_gives_a_valid_class_name() -> None:
    assert "class My2024:" in templates.template_files("attack", "2024")["plugin.py"]


@pytest.mark.parametrize("kind", ["attack", "defense"])
@pytest.mark.parametrize(
    "name",
    ["none", "true", "false", "defense", "attack", "loader", "problem", "tensor", "iterator"],
)
def test_a_class_name_is_neither_a_keyword_nor_imported(kind: str, name: str) -> None:
    tree = ast.parse(templates.template_files(kind, name)["plugin.py"])
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import))
    taken = {alias.asname or alias.name for node in imports for alias in node.names}
    (made,) = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    assert made not in taken and made in (name.capitalize(), f"My{name.capitalize()}")
