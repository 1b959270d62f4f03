"""Outcomes packed to bytes and unpacked bit for bit."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import OUTCOME_DTYPES, Outcomes
from bench.store.codec import pack, unpack, unpack_items
from tests.store.chunks import same_bits
from tests.store.workers import tiny_outcomes


@st.composite
def any_outcomes(draw: st.DrawFn) -> Outcomes:
    count = draw(st.integers(0, 70))
    return Outcomes._make(draw(hnp.arrays(kind, count)) for kind in OUTCOME_DTYPES)


@given(any_outcomes())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_unpacking_gives_back_every_bit(outcomes: Outcomes) -> None:
    assert same_bits(outcomes, unpack(pack(outcomes)))
    assert unpack_items(pack(outcomes)).tolist() == outcomes.item.tolist()


def test_packed_bytes_are_the_same_on_every_machine() -> None:
    blob = pack(tiny_outcomes([258, 1]))
    assert blob[0] == 1
    assert zlib.decompress(blob[1:])[:12] == b"\2\0\0\0" + b"\2\1" + b"\1\0" + b"\0\0\0\0"


def test_outcomes_without_rejection_scores_are_packed_in_the_first_format() -> None:
    plain = tiny_outcomes([4, 5, 6])
    scored = plain._replace(rejection=np.array([-np.inf, 0.25, -1], np.float32))
    one, two = (zlib.decompress(pack(outcomes)[1:]) for outcomes in (plain, scored))
    assert (pack(plain)[0], pack(scored)[0]) == (1, 2)
    assert two[: len(one)] == one and len(two) == len(one) + 3 * 4
    assert np.array_equal(unpack(pack(plain)).rejection, np.full(3, -np.inf, np.float32))
    assert np.array_equal(unpack(pack(scored)).rejection, scored.rejection)


def test_outcomes_with_a_measured_true_class_are_packed_in_the_third_format() -> None:
    plain = tiny_outcomes([4, 5, 6])
    changes: dict[str, npt.NDArray[Any]] = {
        "target": np.array([-1, 2, -1], np.int16), "claimed": np.array([0, -1, 1], np.int8),
        "true_confidence": np.array([0.5, np.nan, 1], np.float32),
        "true_rank": np.array([-1, 0, -1], np.int16), "loss": np.array([0, 0, np.inf], np.float32),
    }  # fmt: skip
    for name, column in changes.items():
        packed = pack(plain._replace(**{name: column}))
        assert packed[0] == 3, name
        assert same_bits(unpack(packed), plain._replace(**{name: column}))


def test_outcomes_with_shares_of_draws_are_packed_in_the_fourth_format() -> None:
    shares = tiny_outcomes([4, 5, 6])._replace(share=np.array([0.25, -1, 1], np.float32))
    assert pack(shares)[0] == 4 and same_bits(unpack(pack(shares)), shares)


@pytest.mark.parametrize("format_", [1, 2])
def test_a_chunk_of_an_older_version_is_read_with_nothing_recorded(format_: int) -> None:
    """Bytes written out here as older versions wrote them, not by today's `pack`."""
    item, verdict = np.array([7, 9], "<i4"), np.array([1, 0], np.uint8)
    bits = np.packbits([True, False], bitorder="little").tobytes()
    distance, label = np.array([0.5, 0.25], "<f8"), np.array([3, 4], "<i2")
    confidence, counts = np.array([0.75, 0.5], "<f4"), np.array([11, 12], "<i4")
    rejection = np.array([-0.5, 0.125], "<f4")

    def shuffled(column: npt.NDArray[Any]) -> bytes:
        size = column.dtype.itemsize
        return column.view(np.uint8).reshape(2, size).T.tobytes()

    content = (
        b"\2\0\0\0" + shuffled(item) + verdict.tobytes() + bits + bits + shuffled(distance)
        + shuffled(label) + shuffled(confidence) + shuffled(counts) * 5
        + (shuffled(rejection) if format_ == 2 else b"")
    )  # fmt: skip
    found = unpack(bytes([format_]) + zlib.compress(content))
    assert (found.item.tolist(), found.verdict.tolist()) == ([7, 9], [1, 0])
    assert (found.distance.tolist(), found.restart.tolist()) == ([0.5, 0.25], [11, 12])
    assert found.rejection.tolist() == ([-0.5, 0.125] if format_ == 2 else [-np.inf, -np.inf])
    assert found.target.tolist() == found.claimed.tolist() == found.true_rank.tolist() == [-1, -1]
    assert np.isnan(found.true_confidence).all() and np.isnan(found.loss).all()
    assert [c.dtype for c in found] == [np.dtype(kind) for kind in OUTCOME_DTYPES]
    assert pack(found)[0] == format_


def test_outcomes_of_the_wrong_type_or_length_are_refused() -> None:
    good = tiny_outcomes([1, 2])
    with pytest.raises(BenchError, match=r"item came as int64\[2\], expected int32\[2\]"):
        pack(good._replace(item=good.item.astype(np.int64)))
    with pytest.raises(BenchError, match=r"step came as int32\[1\], expected int32\[2\]"):
        pack(good._replace(step=good.step[:1]))


def test_a_newer_format_or_damaged_bytes_are_refused_with_a_message() -> None:
    blob = pack(tiny_outcomes([1]))
    with pytest.raises(UnavailableError, match="format 5"):
        unpack(b"\5" + blob[1:])
    with pytest.raises(BenchError, match="damaged"):
        unpack(blob[:-3])
