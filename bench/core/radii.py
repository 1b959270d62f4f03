"""Radii as exact fractions: read from numbers and text, and written as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from bench.core.errors import BenchError

DENOMINATORS = (10, 100, 1000, 10**4, 10**5, 10**6)
"""Bounds on the denominator of a radius that comes as a float; the first that has the float wins.
"""
LARGEST_RADIUS = 10**9
LEVELS = 255
"""The largest value of an 8-bit pixel."""
_NUMBER = re.compile(r"\s*[+-]?[\d.]{1,400}(e[+-]?\d{1,2})?(/\d{1,400})?\s*", re.ASCII | re.I)
"""What a radius may look like; exponents of more digits would take minutes to compute."""


def exact_fraction(eps: float | Fraction | str) -> Fraction:
    """A radius as an exact fraction: the simplest one that has this float.

    Raises BenchError where it is negative, too large or no finite number.

    >>> exact_fraction(8 / 255), exact_fraction("8/255"), exact_fraction(0.5)
    (Fraction(8, 255), Fraction(8, 255), Fraction(1, 2))
    """
    try:
        if isinstance(eps, str) and not _NUMBER.fullmatch(eps):
            raise ValueError(eps)
        exact = Fraction(eps)
    except (ValueError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise BenchError(f"eps is {eps!r}; a number such as 8/255 was expected.") from error
    if exact < 0:
        raise BenchError(f"eps is {eps}; it must not be negative.")
    if exact > LARGEST_RADIUS:
        raise BenchError(f"eps is {eps}; it must be at most 10^9.")
    simpler = (exact.limit_denominator(bound) for bound in DENOMINATORS)
    return next((simple for simple in simpler if float(simple) == float(exact)), exact)


def radius_text(eps: Fraction) -> str:
    """A radius as text that `exact_fraction` reads: a short decimal, or grey levels of 255.

    >>> [radius_text(Fraction(*r)) for r in ((1, 10), (8, 255), (1, 85), (2, 1), (1, 7))]
    ['0.1', '8/255', '3/255', '2', '1/7']
    """
    decimal = f"{float(eps):.4f}".rstrip("0").rstrip(".")
    if Fraction(decimal) == eps:
        return decimal
    return f"{eps * LEVELS}/{LEVELS}" if LEVELS % eps.denominator == 0 else str(eps)
