"""A trace makes the steps of a run: its first success is that of the cell."""

from __future__ import annotations

import csv
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes, Verdict
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.plan import Selection, single_pair
from bench.evaluation.trace import TraceStep, trace_attack
from bench.registry.registry import Registry

SELECTION = Selection(("digits-linf",), ("linear",), ("pgd",), examples=12)
COMMAND = ["run", "--threat", "digits-linf", "--defense", "linear", "--attack", "pgd"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


def outcomes_of(registry: Registry, selection: Selection) -> Outcomes:
    """The outcomes of the cell, by item."""
    import torch

    pair = single_pair(registry, selection, "a test")
    cache = DefenseCache(
        registry=registry, selection=selection, settings=RunSettings(torch.device("cpu"))
    )
    built = cache.defense(pair.defense, pair.threat)
    found = CellPlayer("none").outcomes(pair, built, cache.surrogate(pair))
    order = found.item.argsort()
    return Outcomes._make(column[order] for column in found)


def first_success(steps: list[TraceStep]) -> TraceStep | None:
    return next((step for step in steps if step.success or step.queried_success), None)


@pytest.mark.parametrize(
    ("threat", "attack"),
    [
        ("digits-linf", "pgd"), ("digits-linf", "pgd[steps=5,restarts=3]"),
        ("digits-linf", "apgd-ce"), ("digits-l2", "pgd"), ("digits-targeted", "pgd"),
    ],
)  # fmt: skip
def test_the_first_success_of_a_trace_is_that_of_the_cell(
    registry: Registry, threat: str, attack: str
) -> None:
    selection = replace(SELECTION, threats=(threat,), attacks=(attack,))
    outcomes = outcomes_of(registry, selection)
    broken = 0
    for example in range(12):
        steps = trace_attack(registry, selection, example)
        found = first_success(steps)
        if outcomes.forwards[example] == 0:
            continue  # misclassified without an attack: the cell makes no step
        assert (found is not None) == (outcomes.verdict[example] == Verdict.BROKEN)
        if found is not None and found.success and not found.queried_success:
            broken += 1
            assert (found.restart, found.step) == (
                outcomes.restart[example], outcomes.step[example],
            )  # fmt: skip
            assert steps[-1] is found, "the attack stops there"
            assert found.margin > 0 or threat == "digits-targeted"
    assert broken > 2


def test_an_example_that_holds_is_traced_to_the_end(registry: Registry) -> None:
    selection = replace(SELECTION, threats=("digits-linf[eps=0]",), attacks=("pgd[steps=7]",))
    outcomes = outcomes_of(registry, selection)
    example = int((outcomes.verdict == Verdict.ROBUST).argmax())
    steps = trace_attack(registry, selection, example)
    assert [step.step for step in steps] == list(range(8))
    assert {step.distance for step in steps} == {0.0}
    assert len({step.loss for step in steps}) == 1 and all(step.margin < 0 for step in steps)
    assert [step.queries for step in steps] == list(range(8))


def test_the_loss_of_an_undefended_example_rises_and_the_iterates_stay_inside(
    registry: Registry,
) -> None:
    steps = trace_attack(registry, SELECTION, 3)
    assert steps[-1].loss > steps[0].loss and all(step.inside for step in steps)
    assert max(step.distance for step in steps) <= 0.2 + 1e-6


@pytest.mark.parametrize(
    ("changes", "example", "message"),
    [
        ({"attacks": ("pgd", "fgsm")}, 0, "a trace needs one threat model, defense and attack"),
        ({"attacks": ("boundary",)}, 0, "boundary works in L2"),
        ({"attacks": ("adv-lib-fmn-linf",)}, 0, "makes no steps to trace"),
        ({"defenses": ("noise-first",)}, 0, "noise-first is random"),
        ({}, 12, "the example is 12; there are 0 to 11."),
    ],
)
def test_what_cannot_be_traced_is_one_sentence(
    registry: Registry, changes: dict[str, tuple[str, ...]], example: int, message: str
) -> None:
    if "adv-lib" in str(changes) and "adv-lib-fmn-linf" not in registry.attacks:
        pytest.skip("adv-lib is not installed")
    with pytest.raises(BenchError, match=message):
        trace_attack(registry, replace(SELECTION, **changes), example)  # type: ignore[arg-type]


def test_figures_that_are_not_finite_have_no_json_value() -> None:
    step = TraceStep(0, 1, float("inf"), float("nan"), 0.5, True, -1, False, False, 3)
    assert step.record() == {
        "restart": 0, "step": 1, "loss": None, "margin": None, "distance": 0.5, "inside": True,
        "label": -1, "success": False, "queried_success": False, "queries": 3,
    }  # fmt: skip


def test_the_command_prints_the_steps_and_writes_them(tmp_path: Path) -> None:
    out = tmp_path / "trace.csv"
    words = [*COMMAND, "--trace", "3", "--db", str(tmp_path / "bench.db")]
    done = CliRunner().invoke(app, [*words, "--trace-file", str(out)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == [field.name for field in fields(TraceStep)]
    assert len(lines) == len(rows) + 1
    for line, row in zip(lines[1:], rows, strict=True):
        words_of = line.split()
        assert words_of[:2] == [row["restart"], row["step"]]
        assert float(words_of[2]) == pytest.approx(float(row["loss"]), abs=5e-5)
    assert lines[-1].endswith("success")
    listed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [step["loss"] for step in listed["steps"]] == [float(row["loss"]) for row in rows]
    assert not (tmp_path / "bench.db").exists(), "nothing is stored"
