"""The kept iterates of a transfer attack: what is missing, what is known, and the room for them."""

from __future__ import annotations

import pytest
import torch

from bench.engine.surrogate_iterates import LastIterates, SurrogateIterates


def rows(*values: int) -> LastIterates:
    number = torch.tensor(values)
    return LastIterates(number.float()[:, None, None, None], number + 100, number + 200)


def test_iterates_are_known_by_item_and_restart() -> None:
    kept = SurrogateIterates()
    kept.add([4, 7], 0, rows(4, 7))
    kept.add([7], 1, rows(70))
    assert kept.missing([7, 5, 4], 0) == [5] and kept.missing([4, 7], 1) == [4]
    found = kept.known([7, 4], 0)
    assert found.point.flatten().tolist() == [7.0, 4.0]
    assert found.forwards.tolist() == [107, 104] and found.gradients.tolist() == [207, 204]
    assert kept.known([7], 1).point.flatten().tolist() == [70.0] and len(kept) == 3


def test_a_kept_iterate_is_a_copy() -> None:
    kept, given = SurrogateIterates(), rows(1, 2)
    kept.add([1, 2], 0, given)
    given.point.zero_()
    assert kept.known([1, 2], 0).point.flatten().tolist() == [1.0, 2.0]


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.engine.surrogate_iterates.KEPT_BYTES", 3 * 4)
    kept = SurrogateIterates()
    kept.add([1, 2], 0, rows(1, 2))
    kept.add([3, 4], 0, rows(3, 4))
    kept.add([5], 1, rows(5))
    assert kept.missing([1, 2, 3, 4], 0) == [4] and kept.missing([5], 1) == [5]
