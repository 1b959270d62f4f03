"""Outcomes are joined in item order, and a chunk can leave items out."""

from __future__ import annotations

import numpy as np

from bench.core.outcomes import (
    OUTCOME_DTYPES,
    Chunk,
    KeptImage,
    Outcomes,
    Refusals,
    Verdict,
    refusals,
)


def outcomes(items: list[int], verdicts: list[Verdict]) -> Outcomes:
    """Outcomes of these items, all other columns zero."""
    columns = [np.zeros(len(items), dtype=kind) for kind in OUTCOME_DTYPES]
    columns[0][:], columns[1][:] = items, verdicts
    return Outcomes._make(columns)


def kept(item: int) -> KeptImage:
    image = np.zeros((1, 2, 2))
    return KeptImage(item, image.astype(np.uint8), image.astype(np.float32), 0, 0, 1.0, 1, 1.0)


def test_chunks_are_joined_in_item_order() -> None:
    parts = [
        outcomes([5, 2], [Verdict.BROKEN, Verdict.ROBUST]),
        outcomes([3], [Verdict.OUT_OF_BALL]),
    ]
    joined = Outcomes.concatenate(parts)
    assert joined.item.tolist() == [2, 3, 5]
    assert joined.verdict.tolist() == [Verdict.ROBUST, Verdict.OUT_OF_BALL, Verdict.BROKEN]


def test_no_chunks_give_empty_columns_of_the_right_types() -> None:
    joined = Outcomes.concatenate([])
    assert [column.dtype for column in joined] == [np.dtype(kind) for kind in OUTCOME_DTYPES]
    assert [len(column) for column in joined] == [0] * len(OUTCOME_DTYPES)


def test_refused_images_count_as_unbroken() -> None:
    found = outcomes([0, 1, 2, 3, 4], list(Verdict))
    assert found.survivors() == [0, 2, 3, 4]


def test_a_chunk_without_some_items_keeps_its_seconds() -> None:
    exact = np.array([1, 2], np.int32), np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    chunk = Chunk(outcomes([1, 2], [Verdict.BROKEN] * 2), 1.5, (kept(1), kept(2)), exact)
    rest = chunk.without([1])
    assert rest.seconds == 1.5
    assert rest.outcomes.item.tolist() == [2]
    assert [image.item for image in rest.images] == [2]
    assert rest.exact is not None
    assert rest.exact[0].tolist() == [2]
    assert np.array_equal(rest.exact[1], exact[1][1:])


def test_refused_candidates_are_counted_by_reason() -> None:
    """One count held all refusals before, under the name of one of them."""
    codes = [Verdict.OUT_OF_BALL] * 3 + [Verdict.OUT_OF_BOX] * 2 + [Verdict.NOT_FINITE]
    codes += [Verdict.ROBUST, Verdict.ROBUST, Verdict.BROKEN]
    claimed = np.array([1, 0, 1, 1, 0, 1, 1, 0, 1], np.int8)
    made = outcomes(list(range(9)), codes)._replace(claimed=claimed)
    assert refusals(made) == Refusals(norm=3, box=2, not_finite=1, not_adversarial=1)
    assert refusals(made).total == 7


def test_without_a_record_of_claims_the_unconfirmed_ones_are_not_known() -> None:
    made = outcomes([0, 1], [Verdict.ROBUST, Verdict.OUT_OF_BOX])
    found = refusals(made._replace(claimed=np.array([0, -1], np.int8)))
    assert (found.not_adversarial, found.box, found.total) == (None, 1, 1)
    assert refusals(outcomes([], [])) == Refusals(0, 0, 0, 0)
