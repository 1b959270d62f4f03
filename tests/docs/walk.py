"""Follows a page as a reader does: writes its files and runs its commands, in a folder of its own.

`bench` runs in this process, everything else in a shell. What cannot run in a test is named in
`EXCEPTIONS` with the reason, and checked in another way.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from bench.cli import app, main
from bench.sandbox import isolation
from tests.docs.pages import ROOT, Block, blocks

UNSANDBOXED = "--allow-unsandboxed"
JUSTFILE = ROOT / "justfile"
EXAMPLE_DATABASE = "postgresql://bench@localhost/gauntlet"


class Reader:
    """A reader in an empty folder, with the environment of the project activated."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, database: str = EXAMPLE_DATABASE
    ) -> None:
        """`database` is the URL that stands for the one in the examples."""
        self.folder, self.monkeypatch, self.database = folder, monkeypatch, database
        monkeypatch.chdir(folder)
        for name in ("BENCH_DB", "BENCH_SUBMISSIONS", "BENCH_IMAGE_FOLDER"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        self.stdout = ""

    def follow(self, page: str) -> None:
        """Write every file and run every command of a page."""
        for block in blocks(page):
            self.do(block)

    def do(self, block: Block) -> None:
        """Write the file of a block, or run its commands."""
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        for written in block.commands:
            command = written.replace(EXAMPLE_DATABASE, self.database)
            exception = exception_of(command)
            if exception:
                exception.check(self, command)
            else:
                self.run(command)

    def run(self, command: str) -> str:
        """What a command writes to stdout; fails the test where its exit status is not 0."""
        if command.startswith("export "):
            self.export(command)
            return ""
        words = shlex.split(command.removeprefix("uv run "))
        plain = words[0] == "bench" and not re.search(r"[|>&$;]", command)
        status, out, err = self.bench(words[1:]) if plain else self.shell(command)
        assert status == 0, f"{command}\n{out}\n{err}"
        self.stdout = out
        return out

    def export(self, command: str) -> None:
        """Set environment variables as the shell does."""
        for word in shlex.split(command)[1:]:
            name, value = word.split("=", 1)
            self.monkeypatch.setenv(name, value.replace("$PWD", str(self.folder)))

    def bench(self, words: list[str]) -> tuple[int, str, str]:
        """`bench` in this process: exit status, stdout, stderr."""
        flag = UNSANDBOXED in options(words[:1]) and isolation.why_unavailable()
        words = [*words, UNSANDBOXED] if flag and UNSANDBOXED not in words else words
        self.monkeypatch.setattr(sys, "argv", ["bench", *words])
        out, err = StringIO(), StringIO()
        status = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                status = int(stop.code or 0)
        return status, out.getvalue(), err.getvalue()

    def shell(self, command: str) -> tuple[int, str, str]:
        """A command in bash: exit status, stdout, stderr."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            capture_output=True, text=True, check=False, cwd=self.folder,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


def options(words: list[str]) -> set[str]:
    """The options of a command of `bench`; AssertionError where there is no such command."""
    command = typer.main.get_command(app)
    for word in words:
        known = getattr(command, "commands", {})
        if not known:
            break
        assert word in known, f"`bench` has no command {word!r}"
        command = known[word]
    return {name for part in command.params for name in (*part.opts, *part.secondary_opts)}


def options_exist(reader: Reader, command: str) -> None:
    """Check the options of a `bench` command against its help."""
    words = shlex.split(command.removeprefix("uv run "))[1:]
    given = {word for word in words if word.startswith("--")}
    assert given <= options([word for word in words if not word.startswith("-")]), command


def plan_exists(reader: Reader, command: str) -> None:
    """Print the plan of a run that takes too long: every name in it is registered."""
    assert reader.run(f"{command} --dry-run")


def served(reader: Reader, command: str) -> None:
    """Start the pages on a free port, ask for their health, stop them."""
    options_exist(reader, command)
    words = [sys.executable, "-m", "bench.cli", "leaderboard", "--no-open", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=reader.folder) as server:
        try:
            assert server.stderr
            lines = iter(server.stderr.readline, "")
            address = re.search(r"http://\S+", next(x for x in lines if "Leaderboard:" in x))
            assert address
            with urllib.request.urlopen(f"{address[0]}/_stcore/health", timeout=30) as answer:
                assert answer.status == 200
        finally:
            server.terminate()


def uv_options_exist(reader: Reader, command: str) -> None:
    """Check the options of a `uv` command against its help, where uv is installed."""
    words = shlex.split(command.split("&&")[-1])
    assert words[0] == "uv"
    name = [word for word in words[1:3] if word.isalpha()]
    name = name if name[0] == "pip" else name[:1]
    try:
        told = subprocess.run(["uv", "help", *name], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return
    for word in words:
        if word.startswith("--"):
            assert word in told.stdout, f"uv {' '.join(name)} has no option {word}"


def package_is_on_path(reader: Reader, command: str) -> None:
    """What an installer leaves behind: the module and its entry points, without its network."""
    source = reader.folder / shlex.split(command)[-1]
    name = source.name
    about = source / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = re.findall(
        r"entry-points.bench\]\n(.*)", (source / "pyproject.toml").read_text(), re.DOTALL
    )
    (about / "entry_points.txt").write_text("[bench]\n" + points[0].replace('"', ""))
    reader.monkeypatch.syspath_prepend(str(source))
    path = os.environ.get("PYTHONPATH")
    reader.monkeypatch.setenv("PYTHONPATH", f"{source}:{path}" if path else str(source))


def small_run(reader: Reader, command: str) -> None:
    """Run one attack against one defense in place of the default run, which the CI script does."""
    reader.run("bench run --threat digits-linf --defense undefended --attack fgsm --examples 64")


def recipe_exists(reader: Reader, command: str) -> None:
    """Check that the justfile has the recipe."""
    for word in shlex.split(command)[1:]:
        assert re.search(rf"^{word}\b.*:", JUSTFILE.read_text(), re.MULTILINE), command


def nothing(reader: Reader, command: str) -> None:
    """Skip a command of another program, which the reason describes."""


class Exception_(NamedTuple):  # noqa: N801 - Exception is taken
    """Commands that a test does not run as they stand."""

    pattern: str
    reason: str
    check: Callable[[Reader, str], None]


EXCEPTIONS = (
    Exception_(r"bench leaderboard(?!.*--export)", "serves until stopped", served),
    Exception_(r"bench run .*(--defense all|--device cuda)", "an hour, or a GPU", plan_exists),
    Exception_(r"bench run .*--threat cifar10", "trains a network for minutes", plan_exists),
    Exception_(r"bench train ", "minutes to hours of training", options_exist),
    Exception_(r"(pip install uv && uv run|--no-sync) bench run", "minutes", small_run),
    Exception_(r"uv pip install \./", "needs the network", package_is_on_path),
    Exception_(r"uv (venv|sync|pip)\b", "changes the environment", uv_options_exist),
    Exception_(r"pytest", "is this test run", nothing),
    Exception_(r".*python -m tests\.(benchmarks|tools)", "hours of measurements", nothing),
    Exception_(r"pip install uv && uv sync", "changes the environment", uv_options_exist),
    Exception_(r"(apt-get|createdb|pre-commit)\b", "another program", nothing),
    Exception_(r"just ", "the recipes are tested by their commands", recipe_exists),
)


def exception_of(command: str) -> Exception_ | None:
    """The first exception that a command falls under; None where it is run as it stands."""
    plain = command.removeprefix("uv run ")
    return next((e for e in EXCEPTIONS if re.match(e.pattern, plain)), None)


def commands(pages: list[str]) -> Iterator[tuple[str, str]]:
    """Every command with its page."""
    for page in pages:
        for block in blocks(page):
            yield from ((page, command) for command in block.commands)


FOREIGN_OPTIONS = {"--no-sync", "--torch-backend", "--pairs", "--target"}
"""Options of other programs that the text names."""


def command_names() -> list[str]:
    """Every command of `bench`, with the subcommands of `export` and `db`."""
    group = typer.main.get_command(app)
    names = []
    for name, command in getattr(group, "commands", {}).items():
        names += [name, *(f"{name} {part}" for part in getattr(command, "commands", {}))]
    return names
