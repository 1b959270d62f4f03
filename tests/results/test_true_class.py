"""The worst image of each example, and examples that no image was measured of."""

from __future__ import annotations

import numpy as np
import pytest

from bench.results.true_class import TrueClass, true_class, worst_of
from tests.fixtures.small_store import outcomes, some


def test_the_worst_of_several_images_is_kept_for_each_example() -> None:
    made = outcomes(
        some(6), true_confidence=[0.5, 0.25, 0.75, np.nan, np.nan, 0.0],
        loss=[0.7, 1.4, 0.3, np.nan, np.nan, np.nan], true_rank=[0, 3, 1, -1, -1, 10],
    )  # fmt: skip
    assert true_class(7, made).rank[6] == -1  # no image of it at all
    found = true_class(4, made, np.array([0, 0, 1, 1, 2, 3], np.int32))
    assert np.array_equal(found.confidence, [0.25, 0.75, np.nan, 0.0], equal_nan=True)
    assert np.allclose(found.loss, [1.4, 0.3, np.nan, np.nan], equal_nan=True)
    assert found.rank.tolist() == [3, 1, -1, 10]
    assert found.measured.tolist() == [True, True, False, True]


def test_the_worst_over_parts_ignores_what_was_not_measured() -> None:
    one = TrueClass(np.array([0.5, np.nan]), np.array([1.0, np.nan]), np.array([2, -1]))
    two = TrueClass(np.array([0.75, np.nan]), np.array([3.0, np.nan]), np.array([4, -1]))
    found = worst_of([one, two])
    assert np.array_equal(found.confidence, [0.5, np.nan], equal_nan=True)
    assert np.array_equal(found.loss, [3.0, np.nan], equal_nan=True)
    assert found.rank.tolist() == [4, -1]
    with pytest.raises(ValueError, match="no part"):
        worst_of([])
