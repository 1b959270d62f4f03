"""Norm balls survive the way into the sandbox; sets of plugins are refused."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest

from bench.core.errors import PluginError
from bench.sandbox.norm_codec import decode_set, encode_set
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.sparse import L0


@pytest.mark.parametrize(
    "ball", [Linf(Fraction(8, 255)), L2(Fraction(1, 2)), L1(Fraction(12)), L0(Fraction(3))]
)
def test_a_ball_is_decoded_to_itself(ball: PerturbationSet) -> None:
    decoded = decode_set(encode_set(ball, "pgd"))
    assert decoded == ball
    assert type(decoded) is type(ball)


@dataclass(frozen=True)
class Halved(Linf):
    """A ball of a plugin under a built-in name."""


def test_a_set_of_a_plugin_is_refused_whatever_its_name() -> None:
    with pytest.raises(PluginError, match="pgd runs in the sandbox, which supports the sets"):
        encode_set(Halved(Fraction(1, 4)), "pgd")
