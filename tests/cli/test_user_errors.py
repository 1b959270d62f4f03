"""User errors: one clear sentence each, the right exit code, and no lost data.

Covers bench.cli.options too.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import pytest

from bench.cli import main
from bench.core.cells import CellState
from bench.sandbox import isolation
from bench.store import Store
from bench.store.published import published_database

SMALL = ["--examples", "64", "--threat", "digits-linf", "--defense", "linear", "--attack", "fgsm"]
HEAD = """from collections.abc import Iterator
import torch
from torch import Tensor, nn
from bench.plugin import cross_entropy
from bench.plugin import *
from bench.plugin import hookimpl
"""
DEFENSE = """
class Odd(nn.Module):
    def forward(self, images):
        {forward}

def build(loader):
    {build}

@hookimpl
def bench_defenses():
    yield Defense(name="{name}", build=build, surrogate="linear")
"""
ATTACK = """
class Odd:
    name = "{name}"
    needs = Access.LABELS
    steps = 1
    def start(self, problem):
        return problem.x
    def step(self, problem, adv):
        {step}

@hookimpl
def bench_attacks():
    yield Odd()
"""
CARD = """schema = 1
kind = "{kind}"
name = "{name}"
title = "Odd"
authors = ["A. Tester"]
licence = "MIT"
"""


@dataclass
class Shell:
    """Runs commands in this process, in an empty folder."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.patch.setattr(sys, "argv", ["bench", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capture.readouterr()
        assert "Traceback" not in out + err
        return code, out, " ".join(err.split())

    def submit(self, kind: str, name: str, text: str) -> None:
        """Write a submission with a card."""
        place = self.folder / "submissions" / name
        place.mkdir(parents=True)
        (place / "card.toml").write_text(CARD.format(kind=kind, name=name))
        (place / "plugin.py").write_text(HEAD + text)

    def defense(self, name: str, forward: str, build: str = "return Odd()") -> None:
        self.submit("defense", name, DEFENSE.format(name=name, forward=forward, build=build))

    def attack(self, name: str, step: str) -> None:
        self.submit("attack", name, ATTACK.format(name=name, step=step))

    def evaluate(self, *arguments: str, threat: str = "digits-linf") -> tuple[int, str, str]:
        common = ["--examples", "64", "--threat", threat, "--allow-unsandboxed"]
        return self.run("run", *common, *arguments)


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DB", raising=False)
    monkeypatch.delenv("BENCH_SUBMISSIONS", raising=False)
    return Shell(tmp_path, capsys, monkeypatch)


def states(folder: Path) -> dict[tuple[str, str], CellState]:
    with Store.open(f"sqlite:///{folder}/bench.db", read_only=True) as store:
        return {(row.cell.attack, row.cell.defense): row.state for row in store.cells()}


def test_an_unknown_name_is_answered_with_a_similar_one(shell: Shell) -> None:
    code, out, err = shell.run("run", "--attack", "pdg")
    assert (code, out) == (2, "")
    assert "no attack named 'pdg'" in err and "Did you mean 'pgd'" in err


def test_a_wrong_shape_fails_its_cells_and_no_others(shell: Shell) -> None:
    shell.defense("flat", "return images.flatten(1).sum(1)")
    code, _, err = shell.evaluate("--defense", "flat", "--defense", "linear", "--attack", "fgsm")
    assert code == 3
    assert "flat: the defense returned torch.float32 [64] for 64 images" in err
    found = states(shell.folder)
    assert found["fgsm", "flat"] is CellState.FAILED
    assert found["fgsm", "linear"] is CellState.DONE


def test_logits_that_are_not_finite_count_as_wrong_and_are_reported(shell: Shell) -> None:
    shell.defense("void", "return images.flatten(1)[:, :10] * torch.nan")
    code, _, err = shell.evaluate("--defense", "void", "--attack", "fgsm")
    assert code == 0
    assert (
        "void gave no finite logits for 64 of 64 clean images; they count as misclassified" in err
    )
    _, out, _ = shell.run("report", "--json")
    (row,) = json.loads(out)["ranking"]
    assert row["clean"]["k"] == row["robust"]["k"] == 0


def test_missing_weights_are_reported_by_name(shell: Shell) -> None:
    shell.defense("lost", "return images", build="return loader.weights(Odd(), 'mine.safetensors')")
    code, _, err = shell.evaluate("--defense", "lost", "--attack", "fgsm")
    assert code == 3
    assert "lost needs the weights mine.safetensors" in err
    _, out, _ = shell.run("list", "submissions")
    assert out.startswith("lost  failed  lost needs the weights mine.safetensors")


def test_candidates_outside_the_perturbation_set_break_nothing_and_are_reported(
    shell: Shell,
) -> None:
    shell.attack("far", "return 1 - problem.x")
    code, _, err = shell.evaluate("--defense", "linear", "--attack", "far")
    assert code == 0
    assert (
        "far on digits-linf: " in err
        and "left the perturbation set or [0, 1] (largest distance 1.0000)" in err
    )
    _, out, _ = shell.run("report", "--json")
    square = next(s for s in json.loads(out)["matrix"] if s["attack"] == "far")
    (row,) = json.loads(out)["ranking"]
    assert square["out_of_ball"] == square["robust"]["k"] == row["clean"]["k"]


def test_a_query_that_the_threat_model_forbids_fails_the_cell(shell: Shell) -> None:
    shell.attack("greedy", "return adv + problem.gradient(adv, cross_entropy).gradient")
    code, _, err = shell.evaluate(
        "--defense", "linear", "--attack", "greedy", threat="digits-labels"
    )
    assert code == 3
    assert "greedy requested gradients, but digits-labels reveals labels only" in err


def test_an_invalid_card_is_refused_and_the_other_cells_run(shell: Shell) -> None:
    shell.defense("fine", "return images.flatten(1)[:, :10]")
    shell.defense("torn", "return images")
    (shell.folder / "submissions" / "torn" / "card.toml").write_text("schema = [")
    code, _, err = shell.evaluate("--defense", "fine", "--attack", "fgsm")
    assert code == 0
    assert "refused: " in err and "torn" in err and "card.toml" in err


def test_a_submitted_threat_model_that_fails_waits_and_this_is_reported(shell: Shell) -> None:
    if isolation.why_unavailable():
        pytest.skip(isolation.why_unavailable())
    shell.submit("threat", "submitted", "1 / 0")
    code, _, err = shell.run("run", *SMALL)
    assert code == 0 and "submitted" not in err  # it is not evaluated
    code, _, err = shell.run("run", *SMALL, "--threat", "submitted")
    assert code == 2 and "the threat 'submitted' is a submission" in err
    assert "ZeroDivisionError" in err


def test_a_name_that_is_already_registered_is_refused(shell: Shell) -> None:
    shell.defense("linear", "return images.flatten(1)[:, :10]")
    code, _, err = shell.evaluate("--defense", "linear", "--attack", "fgsm")
    assert code == 0
    assert "two plugins register the defense 'linear'" in err and "Rename one" in err


def test_a_database_of_a_newer_version_is_not_changed(shell: Shell) -> None:
    assert shell.run("run", *SMALL)[0] == 0
    with sqlite3.connect(shell.folder / "bench.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    before = (shell.folder / "bench.db").read_bytes()
    code, _, err = shell.run("run", *SMALL)
    assert code == 5 and "has revision 9999, this program knows up to" in err
    assert (shell.folder / "bench.db").read_bytes() == before


def test_a_database_that_cannot_be_created_is_reported_with_its_path(shell: Shell) -> None:
    (shell.folder / "file").write_text("no folder")
    code, _, err = shell.run("run", *SMALL, "--db", str(shell.folder / "file" / "bench.db"))
    assert code == 5 and "cannot be" in err and "file/bench.db" in err


def test_an_unknown_option_value_is_answered_with_the_valid_ones(shell: Shell) -> None:
    code, _, err = shell.run("run", "--keep-images", "some")
    assert code == 2 and "use one of none, sample, all" in err
    code, _, err = shell.run("run", "--device", "gpu")
    assert code == 2 and "use auto, cpu, cuda or cuda:N" in err


def test_a_report_without_results_names_the_command_that_makes_them(shell: Shell) -> None:
    code, out, err = shell.run("report")
    assert (code, out) == (5, "") and "`bench run` fills one" in err


def test_a_quiet_run_prints_one_summary_line_and_nothing_else(shell: Shell) -> None:
    code, out, err = shell.run("run", *SMALL, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("digits-linf: 1 defense; ") and out.count("\n") == 1
    assert "cells done" in out


def test_a_quiet_run_with_json_prints_the_report(shell: Shell) -> None:
    code, out, err = shell.run("run", *SMALL, "--quiet", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["threat"]["name"] == "digits-linf"


def test_readers_without_a_database_name_the_published_one_and_create_nothing(
    shell: Shell,
) -> None:
    shipped = published_database()
    for words in (
        ("report",),
        ("compare", "pgd", "fgsm"),
        ("export", "outcomes", "--out", "a.csv"),
    ):
        code, out, err = shell.run(*words)
        assert (code, out) == (5, "")
        assert err == (
            f"bench: there is no database at {shell.folder}/bench.db: `bench run` fills one, "
            "`bench submit` and `bench db upgrade` create one, and `--db "
            f"{quote(str(shipped))}` reads published results."
        )
    assert list(shell.folder.iterdir()) == []
    code, out, _ = shell.run("report", "--db", str(shipped), "--format", "csv")
    assert code == 0 and "mnist-pgd" in out
