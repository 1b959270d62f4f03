"""Pairs of examples and target classes, also of outcomes that do not record the target."""

from __future__ import annotations

import numpy as np
import pytest

from bench.results.target_pairs import TargetPairs, joined, target_pairs
from tests.fixtures.small_store import outcomes, some

LABELS = np.array([0, 2, 1], np.int16)
EXAMPLE = np.array([0, 1, 2], np.int32)


def goal(rule: str) -> dict[str, str]:
    return {"kind": "targeted" if rule else "untargeted", "rule": rule}


def test_an_untargeted_attack_reaches_the_classes_that_it_turned_examples_into() -> None:
    made = outcomes(some(3, 0, 1, 2), labels=LABELS, label=[2, 0, -1])
    found = target_pairs(made, EXAMPLE, LABELS, 3, goal(""))
    assert found.reached.tolist() == [0 * 3 + 2, 1 * 3 + 0]  # no class without a finite answer
    assert found.attempted.tolist() == []


def test_a_targeted_attack_tries_the_recorded_targets() -> None:
    made = outcomes(some(3, 1), labels=LABELS, target=[1, 0, 2], label=[0, 0, 1])
    for rule in ("random", "least-likely", "next", "all"):
        found = target_pairs(made, EXAMPLE, LABELS, 3, goal(rule))
        assert found.attempted.tolist() == [0 * 3 + 1, 1 * 3 + 0, 2 * 3 + 2]
        assert found.reached.tolist() == [1 * 3 + 0]


@pytest.mark.parametrize(
    ("rule", "items", "expected"),
    [
        ("next", 3, [0 * 3 + 1, 1 * 3 + 0, 2 * 3 + 2]),
        ("all", 6, [0 * 3 + 1, 0 * 3 + 2, 1 * 3 + 0, 1 * 3 + 1, 2 * 3 + 0, 2 * 3 + 2]),
        ("random", 3, []),
        ("least-likely", 3, []),
    ],
)
def test_targets_of_older_outcomes_follow_from_the_item_or_are_not_known(
    rule: str, items: int, expected: list[int]
) -> None:
    made = outcomes(np.ones(items, np.bool_))
    example = made.item // (items // 3)
    found = target_pairs(made, example, LABELS, 3, goal(rule))
    assert found.attempted.tolist() == found.reached.tolist() == expected


def test_pairs_of_several_attacks_count_once() -> None:
    one = TargetPairs(np.array([1, 5]), np.array([5]))
    two = TargetPairs(np.array([5, 7]), np.array([5, 7]))
    found = joined([one, two])
    assert (found.attempted.tolist(), found.reached.tolist()) == ([1, 5, 7], [5, 7])
    assert [len(column) for column in joined([])] == [0, 0]
