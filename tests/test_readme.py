"""What the README states about commands, plugins and start-up time holds.

Covers bench.cli.__main__ too.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import typer.main

from bench.cli import app, main
from bench.core.cells import CellState
from bench.registry import hookspecs
from bench.registry.registry import HOOK_OF_KIND, Registry
from bench.store import Store
from tests.docs.pages import blocks
from tests.fixtures.known_models import gaussian, linear

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(ATTACK,) = [b.text for b in blocks("README.md") if b.language == "python" and b.file]
(PYTHON,) = [b.text for b in blocks("README.md") if b.language == "python" and not b.file]
(DEFENSE,) = [block.text for block in blocks("docs/tutorials/first-defense.md") if block.file]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DB", raising=False)
    monkeypatch.delenv("BENCH_SUBMISSIONS", raising=False)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capsys.readouterr())

    return command


def test_the_readme_has_at_most_150_lines_and_one_plugin_of_about_thirty() -> None:
    assert len(README.splitlines()) <= 150
    assert "bench_attacks" in ATTACK and "bench_defenses" in DEFENSE
    for block in (ATTACK, DEFENSE):
        assert len([line for line in block.splitlines() if line.strip()]) <= 30


def test_the_lines_of_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.tensor(np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8))
    model = linear(gaussian(2, 64, seed=3))
    names = {"model": model, "x": x, "y": model(x.float() / 255).argmax(1)}
    exec(PYTHON, names)
    assert "square-5000" in capsys.readouterr().out
    adv = cast(torch.Tensor, names["adv"])
    assert (adv - x.float() / 255).abs().max() <= 8 / 255 + 1e-6


def install(folder: Path, module: str, text: str) -> None:
    """What an installer leaves behind: the module, its metadata, its entry point."""
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[bench]\n{module} = {module}\n")


def test_the_same_files_work_as_installed_packages(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "heavy_ball_package", ATTACK)
    install(tmp_path, "two_shades_package", DEFENSE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "heavy_ball_package" in {p.name for p in importlib.metadata.entry_points(group="bench")}
    registry = Registry.load()
    assert registry.problems == []
    assert registry.attacks["heavy-ball"].origin == "entry-point"
    words = ("--examples", "64", "--threat", "digits-linf", "--defense", "two-shades")
    code, _, err = run("run", *words, "--attack", "heavy-ball", "--attack", "fgsm")
    assert code == 0, err
    with Store.open(read_only=True) as store:
        states = {row.cell.attack: row.state for row in store.cells("digits-linf")}
    assert states == {"heavy-ball": CellState.DONE, "fgsm": CellState.DONE}


def commands() -> set[str]:
    group = typer.main.get_command(app)
    return set(group.commands)  # type: ignore[attr-defined]


def test_every_command_that_the_readme_names_exists() -> None:
    texts = [README, (ROOT / "submissions" / "README.md").read_text()]
    named = {word for text in texts for word in re.findall(r"\bbench ([a-z]+)\b", text)}
    assert {"run", "check", "submit", "leaderboard", "report"} <= named <= commands()


def test_the_readme_shows_the_two_commands() -> None:
    assert "pip install uv && uv run bench run" in README
    assert "\nuv run pytest " in README


@pytest.mark.parametrize("words", [["--help"], ["report", "--help"], ["leaderboard", "--help"]])
def test_help_starts_without_torch(words: list[str]) -> None:
    blocked = "import sys; sys.modules['torch'] = None; from bench.cli import main; "
    code = f"{blocked}sys.argv = ['bench', *{words!r}]; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_every_hook_has_a_sentence_a_type_and_a_plugin() -> None:
    specs = {n: f for n, f in vars(hookspecs).items() if n.startswith("bench_")}
    assert set(specs) == {*HOOK_OF_KIND.values(), "bench_cell_judged"}
    for name, spec in specs.items():
        assert inspect.getdoc(spec), f"{name} promises nothing"
        assert "return" in spec.__annotations__
    offered = {
        node.name
        for path in (ROOT / "plugins").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in specs
    }
    assert offered == set(HOOK_OF_KIND.values())


def test_the_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    assert all((ROOT / one).read_bytes().startswith(b"\x89PNG") for one in pictures)
