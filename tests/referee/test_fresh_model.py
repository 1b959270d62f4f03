"""Tests of bench.referee.fresh_model: answers and votes of a fresh copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.referee.fresh_model import FreshAnswers, FreshModel
from bench.referee.referee import clean_outcomes
from tests.fixtures.known_models import digits, small_cnn


def test_no_images_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        FreshModel(small_cnn()).answer(torch.zeros(0, 1, 8, 8), [])


def test_answers_do_not_depend_on_the_group() -> None:
    x, _ = digits(150)
    fresh_model = FreshModel(small_cnn())
    whole: FreshAnswers = fresh_model.answer(x, range(3))
    parts = torch.cat([fresh_model.answer(x[i : i + 7], [0]).logits for i in range(0, 150, 7)])
    assert torch.equal(whole.logits, parts)


def test_a_defense_without_rejection_has_a_score_of_minus_infinity() -> None:
    x, y = digits(32)
    fresh_model = FreshModel(small_cnn())
    assert torch.isneginf(fresh_model.answer(x, [0]).rejection).all()
    assert np.isneginf(clean_outcomes(fresh_model.answer(x, [0]), y).rejection).all()
