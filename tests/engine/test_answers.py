"""Tests of bench.engine.answers: labels, rejection and goals of a model's answers."""

from __future__ import annotations

import torch

from bench.core.outcomes import REJECTED
from bench.engine.answers import ClassifierOnly, column_mismatch, predicted_labels, reaches_goal
from bench.engine.model_access import ModelAccess
from tests.fixtures.rejecting_defenses import (
    FirstPixelClassifier,
    always_rejects,
    grey_images,
)


def test_a_positive_rejection_score_rejects_whatever_the_logits() -> None:
    answer = torch.tensor([[1.0, 2, -1], [2, 1, -1], [1, 2, 1], [2, 1, 1e-30], [1, 2, 0]])
    label = predicted_labels(answer, rejects=True)
    assert label.tolist() == [1, 0, REJECTED, REJECTED, 1]
    assert predicted_labels(answer[:, :2], rejects=False).tolist() == [1, 0, 1, 0, 1]
    zero = torch.zeros_like(label)
    reached = reaches_goal(label, zero, targeted=False, rejects=True)
    assert reached.tolist() == [True, False, False, False, True]
    reached = reaches_goal(label, zero + 1, targeted=True, rejects=True)
    assert reached.tolist() == [True, False, False, False, True]


def test_a_wrong_number_of_columns_is_described() -> None:
    assert column_mismatch(11, 10, rejects=True) == column_mismatch(10, 10, rejects=False) == ""
    assert "10 columns; 11 were expected" in column_mismatch(10, 10, rejects=True)
    assert "rejection score less its threshold" in column_mismatch(10, 10, rejects=True)
    assert "rejection" not in column_mismatch(11, 10, rejects=False)


def test_diagnostics_see_logits_without_the_rejection_score() -> None:
    x, _ = grey_images(3)
    module = FirstPixelClassifier(always_rejects)
    assert torch.equal(ClassifierOnly(module)(x), module(x)[:, :2])
    assert torch.equal(ModelAccess(module, rejects=True).visible(module(x)), module(x)[:, :2])
