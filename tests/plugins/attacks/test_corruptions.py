"""Corruptions as cells without an attacker: what they count, and that a rank reads none of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from torch import Tensor

from bench.core.corruptions import CORRUPTIONS, SEVERITIES, corruption_attack
from bench.core.errors import BenchError
from bench.core.outcomes import Verdict
from bench.evaluation.plan import Selection, selected_threats, why_not_applicable
from bench.plugin import Access
from bench.registry.registry import Registry
from bench.threats.corrupted_images import corrupted
from bench.threats.corruption import Corruption
from plugins.attacks.corruptions import FixedCorruption
from tests.engine.single_run import SingleRun, assert_same
from tests.fixtures.known_models import digits, small_cnn

COUNT = 300


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Every built-in plugin."""
    return Registry.without_submissions()


def right_both(attack: FixedCorruption) -> Tensor:
    """[n] bool: a small network is right on the clean image and on the corrupted one."""
    x, y = digits(COUNT)
    images = corrupted(x, attack.kind, int(attack.severity))
    right: Tensor = (small_cnn()(x).argmax(1) == y) & (small_cnn()(images).argmax(1) == y)
    return right


@pytest.mark.row("G17")
def test_the_accuracy_does_not_rise_with_the_severity_on_average(registry: Registry) -> None:
    x, y = digits(COUNT)
    mean = [float((small_cnn()(x).argmax(1) == y).sum())]
    for severity in range(1, SEVERITIES + 1):
        names = [corruption_attack(kind, severity) for kind in CORRUPTIONS]
        right = [right_both(registry.find("attack", name).value).sum() for name in names]
        mean.append(float(sum(right)) / len(right))
    assert all(more >= less for more, less in pairwise(mean))
    assert mean[-1] < 0.8 * mean[0]


@pytest.mark.parametrize("name", ["rain", "jpeg[severity=4]"])
def test_an_example_counts_that_is_right_clean_and_corrupted(registry: Registry, name: str) -> None:
    attack = registry.find("attack", name).value
    found = SingleRun(attack, Corruption(), model=small_cnn(), count=COUNT).run()
    robust = found.outcomes.verdict == Verdict.ROBUST
    assert np.array_equal(robust, right_both(attack).numpy())


def test_an_outcome_needs_no_query_and_does_not_depend_on_the_batch() -> None:
    run = SingleRun(FixedCorruption("fog"), Corruption(), model=small_cnn(), count=100)
    whole = run.run(slots=256)
    assert_same(whole, run.run(slots=16))
    assert whole.outcomes.gradients.sum() == whole.outcomes.forwards.sum() == 0


def test_no_attack_with_access_meets_corruptions_and_no_rank_reads_them(registry: Registry) -> None:
    threat = registry.find("threat", "digits-corruptions").value
    defense = registry.find("defense", "undefended").value
    assert threat.access is Access.NOTHING and not threat.protocol.ranked
    assert len(threat.protocol.required) == len(CORRUPTIONS) * SEVERITIES
    meeting = {
        name
        for name, found in registry.attacks.items()
        if "[" not in name and not why_not_applicable(threat, defense, found.value)
    }
    assert meeting == {*CORRUPTIONS, "random"}


def test_they_run_where_they_are_named_and_not_by_default(registry: Registry) -> None:
    default = {threat.name for threat in selected_threats(registry, Selection())}
    assert "digits-linf" in default and "digits-corruptions" not in default
    named = selected_threats(registry, Selection(threats=("digits-corruptions",)))
    assert [threat.name for threat in named] == ["digits-corruptions"]


def test_a_severity_that_does_not_exist_is_refused(registry: Registry) -> None:
    with pytest.raises(BenchError, match="severity of fog came as '6'"):
        registry.find("attack", "fog[severity=6]")
