"""Events: they survive pickling, for they cross process boundaries; notices are sentences."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import get_args

import pytest

from bench.core.cells import Cell
from bench.core.statistics import count_interval
from bench.engine.precision_audit import PrecisionAudit
from bench.evaluation import events
from bench.evaluation.events import Event
from bench.evaluation.plan import PlannedPair
from bench.registry.registry import Registry
from bench.threats.norms import Linf
from bench.threats.threat_model import ThreatModel

CELL = Cell("threat", "linear", "pgd", "id", "d", "a", "e", items=100)
EXAMPLES: list[Event] = [
    events.CellStarted(CELL, 3),
    events.ChunkRecorded(CELL, 64),
    events.CellFinished(CELL, count_interval(40, 100)),
    events.CellFailed(CELL, "it broke."),
    events.DefenseFailed("linear", "no such layer."),
    events.TrainingProgress("epoch 1/2"),
    events.TrainingElsewhere("linear"),
    events.CellsElsewhere(CELL, 2, "12:00:00", "process 17 on another-host"),
    events.LeaseLost(CELL, "lost"),
    events.RunNotice("careful"),
    events.PluginProblem("refused"),
]


def test_every_kind_of_event_has_an_example_here() -> None:
    assert {type(event) for event in EXAMPLES} == set(get_args(Event))


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_survives_pickling_and_cannot_be_changed(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    field = next(iter(vars(event)))
    with pytest.raises(FrozenInstanceError):
        setattr(event, field, None)


def test_notices_name_counts_cell_and_what_to_do() -> None:
    assert events.no_finite_logits("linear", 2, 64).text == (
        "linear gave no finite logits for 2 of 64 clean images; they count as misclassified. "
        "`bench check linear` shows where."
    )
    assert events.refused_candidates(CELL, 7, 0.25).text == (
        "pgd on threat: 7 of 100 images against linear left the perturbation set or [0, 1] "
        "(largest distance 0.2500); they count as unbroken."
    )
    registry = Registry.without_submissions()
    threat = ThreatModel("threat", "digits", Linf(Fraction(1, 5)))
    defense, attack = registry.defenses["linear"].value, registry.attacks["pgd"].value
    audit = PrecisionAudit(survivors=90, sampled=32, broken=1)
    assert events.missed_in_low_precision(PlannedPair(threat, defense, attack), audit).text == (
        "pgd on threat: 1 of 32 sampled examples of linear that were robust in low precision are "
        "broken in float32; all 90 robust ones were evaluated again in float32."
    )
