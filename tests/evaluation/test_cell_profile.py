"""`bench profile`: the parts of a cell's time, and that measuring changes nothing.

Covers bench.cli.profile_commands.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from bench.cli import app
from bench.core.errors import BenchError
from bench.engine import scheduler
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_profile import (
    BACKWARD,
    CLEAN_PASS,
    FORWARD,
    PARTS,
    PROJECTION,
    REFEREE,
    STEP,
    STORE,
    PartTimer,
    profile_cell,
)
from bench.evaluation.plan import Selection
from bench.plugin import Defense
from bench.referee.referee import Referee
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.threats.norms import Linf
from tests.fixtures.known_models import gaussian

CPU = RunSettings(torch.device("cpu"), 64)
PAUSE = 0.02
STEPS = 4


class SlowBackward(torch.autograd.Function):
    """The identity, whose derivative takes PAUSE seconds."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        time.sleep(PAUSE)
        return grads[0]


class Paused(nn.Module):
    """A linear model for digits that no attack breaks, with pauses of 2 PAUSE and PAUSE."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", 1e-6 * gaussian(10, 64, seed=1))

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(2 * PAUSE)
        same: Tensor = SlowBackward.apply(images)
        return same.flatten(1) @ self.get_buffer("weight").T + torch.eye(10)[0]


def registry() -> Registry:
    known = Registry.without_submissions()
    paused = Defense("paused", lambda _: Paused())
    known.defenses["paused"] = Registration(paused, "entry-point", "tests", "0" * 64)
    return known


def selection(*attacks: str) -> Selection:
    return Selection(("digits-linf",), ("paused",), attacks, examples=16)


def test_each_part_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGD makes a forward and a backward pass of the model a step, each of known length."""
    project = Linf.project

    def slow_project(self: Linf, adv: Tensor, x: Tensor) -> Tensor:
        time.sleep(PAUSE)
        return project(self, adv, x)

    monkeypatch.setattr(Linf, "project", slow_project)
    before = (vars(scheduler)["stepped"], Referee.judge, Referee.confirm)
    found = profile_cell(registry(), selection(f"pgd[steps={STEPS}]"), CPU)
    assert (vars(scheduler)["stepped"], Referee.judge, Referee.confirm) == before
    assert Linf.project is slow_project
    parts = {part.name: part for part in found.parts}
    assert tuple(parts) == PARTS and found.examples == 16
    assert parts[BACKWARD].calls == STEPS
    # The scheduler's final check queries the model once more.
    assert STEPS <= parts[FORWARD].calls <= STEPS + 1
    assert parts[STEP].calls == STEPS + 1, "the start and the steps"
    assert parts[PROJECTION].calls >= STEPS
    for name, pause in ((FORWARD, 2 * PAUSE), (BACKWARD, PAUSE), (PROJECTION, PAUSE)):
        assert pause * parts[name].calls <= parts[name].seconds
        assert parts[name].seconds <= 0.9 * found.seconds
    assert parts[STEP].seconds < parts[FORWARD].seconds, "a step counts without the model"
    assert parts[CLEAN_PASS].calls == 1 and parts[CLEAN_PASS].seconds >= 2 * PAUSE
    assert parts[REFEREE].seconds >= 2 * PAUSE, "with the forward pass of the fresh model"
    assert parts[STORE].calls > 5
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.seconds)


def test_time_counts_to_the_innermost_part_and_once() -> None:
    timer = PartTimer()
    with timer.part(STEP):
        time.sleep(PAUSE)
        with timer.part(FORWARD):
            time.sleep(2 * PAUSE)
    with timer.part(REFEREE), timer.part(FORWARD):
        time.sleep(3 * PAUSE)
    parts = {part.name: (part.calls, part.seconds) for part in timer.parts()}
    assert [parts[name][0] for name in (STEP, FORWARD, REFEREE)] == [1, 1, 1]
    assert PAUSE <= parts[STEP][1] < parts[FORWARD][1] < parts[REFEREE][1]


def test_a_profile_is_of_one_cell_and_a_failed_cell_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BenchError, match="a profile needs one threat model, defense and attack"):
        profile_cell(registry(), selection("pgd", "fgsm"), CPU)

    def no_step(*_: object) -> None:
        raise BenchError("no step.")

    monkeypatch.setattr(scheduler, "stepped", no_step)
    with pytest.raises(BenchError, match="no step"):
        profile_cell(registry(), selection("pgd"), CPU)


def test_the_command_prints_every_part() -> None:
    words = ["profile", "--threat", "digits-linf", "--defense", "naive-bayes", "--attack", "fgsm",
             "--examples", "16"]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [part["name"] for part in found["parts"]] == list(PARTS)
    assert found["seconds"] > 0 and found["examples"] == 16
    shown = CliRunner().invoke(app, words)
    assert all(name in shown.stdout for name in (*PARTS, "100.0 %"))
