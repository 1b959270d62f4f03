"""Checks of a defense that rejects images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.contract.runner import CHECKS, FIXTURES, run_check
from bench.plugin import Defense
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from tests.fixtures.known_models import small_cnn


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(Path("no-such-folder"))


class Scoring(nn.Module):
    """The small CNN with a constant rejection score, or without one."""

    def __init__(self, score: float | None) -> None:
        super().__init__()
        self.inner, self.score = small_cnn(), score

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        if self.score is None:
            return logits
        return torch.cat([logits, 0 * logits[:, :1] + self.score], 1)


@pytest.mark.parametrize(
    ("score", "check", "message"),
    [
        (None, "logits-have-one-column-a-class", "10 columns; 11 were expected"),
        (1.0, "clean-images-are-accepted", "rejects 1.000 of clean test images"),
        (1.0, "better-than-chance", "clean accuracy is 0.000"),
        (-1.0, "logits-have-one-column-a-class", ""),
        (-1.0, "clean-images-are-accepted", ""),
        (-1.0, "better-than-chance", ""),
    ],
)
def test_checks_of_a_defense_include_its_rejection_score(
    registry: Registry, score: float | None, check: str, message: str
) -> None:
    record = Defense("planted", lambda loader: Scoring(score), rejects=0.05)
    table = {**registry.defenses, "planted": Registration(record, "planted", "planted", "0" * 64)}
    known = replace(registry, defenses=table)
    (chosen,) = (one for one in CHECKS["defense"] if one.name == check)
    found = run_check("defense", "planted", chosen, FIXTURES["defense"](known, record))
    assert message in found.sentence and (found.outcome == "fail") == bool(message), found
