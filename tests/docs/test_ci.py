"""The CI script: which tests may be skipped where, and that its files are well formed."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT

CUDA = "SKIPPED [2] tests/engine/test_fast_forms.py:99: torch finds no CUDA device\n"
DATA = (
    "SKIPPED [4] tests/data/test_datasets.py:44: BENCH_DATA names no folder that holds MNIST\n"
    "SKIPPED [1] tests/plugins/test_x.py:62: mnist could not be read: no network\n"
    "SKIPPED [1] tests/cli/test_doctor.py:59: no data set lies here\n"
)
OTHER = "SKIPPED [1] tests/store/conftest.py:23: no PostgreSQL server programs\n"


@pytest.mark.parametrize(
    ("data", "log", "status"),
    [
        ("with-data", "1 passed\n", 0),
        ("with-data", CUDA, 0),
        ("with-data", CUDA + DATA, 1),
        ("with-data", OTHER, 1),
        ("without-data", CUDA + DATA, 0),
        ("without-data", CUDA + DATA + OTHER, 1),
        ("sometimes", CUDA, 2),
    ],
)
def test_only_tests_that_cannot_run_may_be_skipped(
    tmp_path: Path, data: str, log: str, status: int
) -> None:
    path = tmp_path / "pytest.log"
    path.write_text(log)
    command = [str(ROOT / ".ci" / "skipped"), data, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    named = done.stdout if status == 0 else done.stderr
    for line in log.splitlines():
        if line.startswith("SKIPPED") and (status == 0 or (status == 1 and line in OTHER)):
            assert line in named


@pytest.mark.parametrize("script", ["run", "skipped"])
def test_the_scripts_are_valid_and_executable(script: str) -> None:
    path = ROOT / ".ci" / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_workflow_runs_the_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if step.get("run") == ".ci/run"]


def test_the_hooks_run_the_tools_of_the_environment() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff-check", "ruff-format", "mypy"}


def test_the_version_has_an_entry_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_says_that_it_is_typed() -> None:
    assert (ROOT / "bench" / "py.typed").is_file()
