"""Robust accuracy of defenses under single attacks, as whole cells without a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.core.outcomes import Verdict
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.plan import Selection
from bench.plugin import Defense, Randomness
from bench.registry.registry import Registry

Bits = npt.NDArray[np.bool_]
SUBMISSIONS = Path(__file__).parents[2] / "submissions"


def undeclared(defense: Defense) -> Defense:
    """The defense without its BPDA approximation and with gradients of one draw.

    Whether it is random stays declared: without that the referee would not vote over draws.
    """
    one_draw = None if defense.randomness is None else Randomness(1)
    return replace(defense, bpda=None, randomness=one_draw)


@dataclass
class AdaptiveEvaluation:
    """Attacks on the first examples of a threat model's data set; each defense is built once."""

    threat: str = "digits-linf"
    examples: int = 128
    device: str = "cpu"
    results: dict[tuple[str, str, bool], Bits | None] = field(default_factory=dict)

    @cached_property
    def caches(self) -> dict[bool, DefenseCache]:
        """Built defenses, by whether they are without their declarations."""
        return {plain: self._cache(plain) for plain in (True, False)}

    def _cache(self, plain: bool) -> DefenseCache:
        registry = Registry.load(SUBMISSIONS)
        if plain:
            for name, offer in list(registry.defenses.items()):
                registry.defenses[name] = replace(offer, value=undeclared(offer.value))
        selection = Selection((self.threat,), examples=self.examples)
        settings = RunSettings(torch.device(self.device))
        return DefenseCache(registry=registry, selection=selection, settings=settings)

    def robust(self, defense: str, attack: str, *, plain: bool = False) -> Bits | None:
        """Which examples [n] stay right; None where the attack does not apply.

        Examples that the attack leaves out, and those whose candidate was refused, stay right.
        With `plain` the attack uses nothing that the defense declares.
        """
        key = (defense, attack, plain)
        if key not in self.results:
            self.results[key] = self._evaluate(defense, attack, plain)
        return self.results[key]

    def _evaluate(self, name: str, attack: str, plain: bool) -> Bits | None:
        cache = self.caches[plain]
        chosen = replace(cache.selection, defenses=(name,), attacks=(attack,))
        (pair,) = plan.plan_pairs(cache.registry, chosen)
        if pair.reason:
            return None
        defense, surrogate = cache.defense(pair.defense, pair.threat), cache.surrogate(pair)
        outcomes = CellPlayer("none").outcomes(pair, defense, surrogate)
        robust = self.clean(name)
        robust[outcomes.item[outcomes.verdict == int(Verdict.BROKEN)]] = False
        return robust

    def clean(self, name: str) -> Bits:
        """Which clean examples [n] are right and, by a detector, accepted."""
        cache = self.caches[False]
        threat = cache.registry.find("threat", self.threat).value
        built = cache.defense(cache.registry.find("defense", name).value, threat)
        labels = built.examples.labels
        right: Bits = built.clean.label.numpy() == labels
        return right

    def worst(self, defense: str, attacks: Sequence[str]) -> tuple[Bits, str]:
        """Which examples stay right under all attacks, and the attack that alone leaves fewest."""
        found = {name: self.robust(defense, name) for name in attacks}
        known = {name: bits for name, bits in found.items() if bits is not None}
        strongest = min(known, key=lambda name: int(known[name].sum()))
        return np.logical_and.reduce(list(known.values())), strongest
