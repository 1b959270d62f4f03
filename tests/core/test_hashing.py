"""Canonical JSON depends on the content alone, and so does its digest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.hashing import canonical, digest

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
RECORDS = st.dictionaries(st.text(max_size=5), SCALARS, max_size=5)


@given(RECORDS)
def test_the_order_of_keys_changes_nothing(record: dict[str, object]) -> None:
    backwards = dict(reversed(list(record.items())))
    assert canonical(backwards) == canonical(record)
    assert digest(backwards) == digest(record)


@given(RECORDS, RECORDS)
def test_different_records_have_different_digests(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))


def test_canonical_json_has_no_spaces() -> None:
    assert canonical({"b": [1, 2], "a": "é"}) == '{"a":"\\u00e9","b":[1,2]}'


def test_a_digest_is_the_sha256_of_the_canonical_json() -> None:
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"radius": value})
