"""Radii are read exactly and written so that they are read again."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import BenchError
from bench.core.radii import exact_fraction, radius_text


@given(st.fractions(min_value=0, max_value=1000, max_denominator=10**6))
def test_a_written_radius_is_read_as_itself(eps: Fraction) -> None:
    assert exact_fraction(radius_text(eps)) == eps


@given(st.floats(min_value=0, max_value=1e6))
def test_every_float_is_written_and_read_as_itself(eps: float) -> None:
    exact = exact_fraction(eps)
    assert float(exact) == eps
    assert exact_fraction(radius_text(exact)) == exact


@pytest.mark.parametrize(
    ("text", "written"),
    [("51/255", "0.2"), ("0.20", "0.2"), (".5", "0.5"), ("4/255", "4/255"), ("1/85", "3/255"),
     ("1e-3", "0.001"), ("2", "2"), ("0", "0"), ("1/3", "85/255"), ("1/7", "1/7")],
)  # fmt: skip
def test_equal_radii_have_one_text(text: str, written: str) -> None:
    assert radius_text(exact_fraction(text)) == written


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        ("", "eps is ''; a number such as 8/255 was expected."),
        ("8/0", "eps is '8/0'; a number such as 8/255 was expected."),
        ("1/2/3", "a number such as 8/255"),
        ("eight", "a number such as 8/255"),
        ("nan", "a number such as 8/255"),
        ("inf", "a number such as 8/255"),
        ("1e999999999", "a number such as 8/255"),
        (float("nan"), "a number such as 8/255"),
        (float("inf"), "a number such as 8/255"),
        ("-0.1", "eps is -0.1; it must not be negative."),
        (-1, "must not be negative"),
        ("1e12", "eps is 1e12; it must be at most 10^9."),
        (Fraction(10**400), "it must be at most 10^9."),
    ],
)
def test_what_is_no_radius_is_refused(eps: float | str | Fraction, message: str) -> None:
    with pytest.raises(BenchError) as refused:
        exact_fraction(eps)
    assert message in str(refused.value)
