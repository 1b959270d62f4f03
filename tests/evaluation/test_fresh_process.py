"""A defense is built in another interpreter, and what depends on the process shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.data import datasets
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.diagnostics import evidence_of
from bench.evaluation.fresh_process import BuildRequest, FreshProcess, fresh_process
from bench.plugin import Finding
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder

PLUGIN = """
import os, time
import torch
from torch import nn
from bench.plugin import Defense, hookimpl

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.sign = {sign}

    def forward(self, images):
        return self.sign * self.layer(images.flatten(1))

@hookimpl
def bench_defenses():
    yield Defense("planted", lambda loader: Model())
"""

CARD = """schema = 1
kind = "defense"
name = "planted"
title = "Planted"
authors = ["A. Nonymous"]
licence = "MIT"
summary = "A linear model."
"""


@pytest.fixture(scope="module", autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    fresh_process().close()


def built(folder: Path, sign: str) -> BuiltDefense:
    place = folder / "planted"
    place.mkdir(parents=True)
    (place / "card.toml").write_text(CARD)
    (place / "plugin.py").write_text(PLUGIN.replace("{sign}", sign))
    registry = Registry.load(folder, allow_unsandboxed=True)
    dataset = registry.datasets["digits"].value
    builder = DefenseBuilder(registry, "planted", dataset)
    examples = datasets.first_examples(dataset, 64)
    return BuiltDefense(builder, examples, RunSettings(torch.device("cpu")), 0)


def finding(defense: BuiltDefense) -> tuple[Finding, str]:
    diagnostic: Any = defense.registry.diagnostics["fresh-process"].value
    evidence = evidence_of(diagnostic, defense)
    return evidence.finding, evidence.sentence


def test_an_honest_defense_answers_alike(tmp_path: Path) -> None:
    found, sentence = finding(built(tmp_path, "1.0"))
    assert (found, "change by 0 of" in sentence) == (Finding.PASSED, True), sentence


@pytest.mark.parametrize(
    "sign",
    [
        "1.0 if os.getpid() == {pid} else -1.0",
        "1.0 if time.time() < {later} else -1.0",
        "1.0 if time.monotonic() < {uptime} else -1.0",
        "1.0 if 'pytest' in __import__('sys').modules else 2.0",
    ],
    ids=["process-id", "date", "uptime", "loaded-modules"],
)
def test_a_defense_that_depends_on_the_process_is_a_warning(tmp_path: Path, sign: str) -> None:
    values = {
        "{pid}": str(os.getpid()),
        "{later}": str(time.time() + 3600),
        "{uptime}": str(time.monotonic() + 3600),
    }
    for name, value in values.items():
        sign = sign.replace(name, value)
    found, sentence = finding(built(tmp_path, sign))
    assert found is Finding.WARNING, sentence


def test_a_defense_that_changed_meanwhile_is_not_compared(tmp_path: Path) -> None:
    defense = built(tmp_path, "1.0")
    (tmp_path / "planted" / "plugin.py").write_text(PLUGIN.replace("{sign}", "3.0"))
    fresh_process().close()
    found, sentence = finding(defense)
    assert (found, "another digest" in sentence) == (Finding.NOT_TESTED, True), sentence


def request(**changes: Any) -> BuildRequest:
    return BuildRequest(**({"defense": "undefended", "dataset": "digits", "digest": ""} | changes))


def test_an_unknown_defense_is_a_reason_and_the_process_goes_on() -> None:
    images = torch.zeros(2, 1, 8, 8)
    process = fresh_process()
    reason = process.logits(request(defense="no-such"), images)
    assert isinstance(reason, str) and "no defense named 'no-such'" in reason
    again = process.logits(request(dataset="no-such"), images)
    assert isinstance(again, str) and "no dataset named" in again
    assert fresh_process() is process


def test_a_process_that_ended_is_a_reason_and_is_replaced() -> None:
    process = fresh_process()
    process.process.kill()
    process.process.wait()
    answer: Tensor | str = process.logits(request(), torch.zeros(1, 1, 8, 8))
    assert answer == "another interpreter gave no answer"
    assert fresh_process() is not process


def test_the_process_ends_with_its_pipe() -> None:
    process = FreshProcess()
    assert process.process.stdin is not None
    process.process.stdin.close()
    assert process.process.wait(timeout=60) == 0
    process.close()
