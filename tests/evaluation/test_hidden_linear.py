"""Gradients that mislead hide nothing from the protocol: the exact robust accuracy is found."""

from __future__ import annotations

import pytest

from tests.benchmarks.hidden_linear import autoattack_robust, exact_robust, measured

COUNT, PEER_COUNT = 60, 12


def test_the_closed_form_counts_examples_with_a_margin() -> None:
    """Of 500 examples as the peer table has them, and a part of them is a part of the count."""
    assert 100 < exact_robust(500) < 250
    assert 0 < exact_robust(COUNT) < COUNT


def test_autoattack_finds_the_exact_count_of_the_plain_classifier() -> None:
    pytest.importorskip("pyautoattack", reason="the peer is an extra")
    assert autoattack_robust("plain", PEER_COUNT) == exact_robust(PEER_COUNT)


@pytest.mark.slow
def test_autoattack_leaves_more_where_answers_are_one_hot() -> None:
    """They have no gradient, so that only its random search breaks anything."""
    pytest.importorskip("pyautoattack", reason="the peer is an extra")
    assert exact_robust(PEER_COUNT) < autoattack_robust("one-hot", PEER_COUNT) <= PEER_COUNT


@pytest.mark.slow
def test_the_ranked_figure_is_the_exact_one_without_being_told() -> None:
    """Zero gradients and one-hot answers, where AutoAttack reports far too much."""
    rows = measured(COUNT, ("zero-gradient", "one-hot"), peer=False)
    assert [row.defense for row in rows] == ["zero-gradient", "one-hot"]
    for row in rows:
        assert row.exact <= row.ranked <= row.exact + 0.02 * COUNT, row
