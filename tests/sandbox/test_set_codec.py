"""Built-in perturbation sets survive the way into the sandbox; sets of plugins are refused."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest

from bench.core.errors import PluginError
from bench.sandbox.set_codec import ENCODED_SETS, decode_set, encode_set, set_values
from bench.threats.corruption import Corruption
from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.elastic import ElasticField
from bench.threats.lp_ball import LpBall
from bench.threats.masked_pattern import MaskedPattern
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.patch import Patch
from bench.threats.perceptual import PerceptualBall
from bench.threats.random_patch import RandomPatch
from bench.threats.sparse import L0
from bench.threats.spatial import RotationTranslation

SETS = [
    Linf(Fraction(8, 255)), L2(Fraction(1, 2)), L1(Fraction(12)), L0(Fraction(3)),
    RotationTranslation(20.0, 2.5, eps=Fraction(1, 3)), ElasticField(2.0, 4), Patch(2, 3, 4, 5),
    RandomPatch(4, 0.5, 1.5, 20.0, 7), LinfDelta(eps=Fraction(1, 7)), L2Delta(eps=Fraction(3, 2)),
    LpBall(Fraction(1, 3), 4.5), PerceptualBall(Fraction(2), "identity"),
    Corruption(eps=Fraction(3, 5)), MaskedPattern("stickers", 0.1, 0.2, 0.3, 0.4),
]  # fmt: skip


def test_every_built_in_set_has_a_case() -> None:
    assert {type(one) for one in SETS} == set(ENCODED_SETS.values())


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_a_set_is_decoded_to_itself(one: PerturbationSet) -> None:
    decoded = decode_set(encode_set(one, "pgd"))
    assert decoded == one
    assert type(decoded) is type(one)


@pytest.mark.parametrize(
    "change",
    [{"eps": 1}, {"eps": "1" * 101}, {"eps": "-1"}, {"degrees": "3"}, {"degrees": True},
     {"degrees": float("nan")}, {"degrees": 181.0}, {"pixels": -1.0}, {"pixels": "2"}],
)  # fmt: skip
def test_invalid_values_are_refused(change: dict[str, object]) -> None:
    values = set_values(RotationTranslation(20.0, 2.5)) | change
    with pytest.raises(ValueError, match=next(iter(change))):
        decode_set(values)


@dataclass(frozen=True)
class Halved(Linf):
    """A ball of a plugin under a built-in name."""


def test_a_set_of_a_plugin_is_refused_whatever_its_name() -> None:
    with pytest.raises(PluginError, match="pgd runs in the sandbox, which supports the sets"):
        encode_set(Halved(Fraction(1, 4)), "pgd")
