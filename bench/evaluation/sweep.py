"""Sweeps over an attack's parameters: each variant is a whole cell, verified by the referee.

A figure that still falls when steps, step size or restarts grow is no lower bound yet
(arXiv:1902.06705, section 5).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.core.errors import BenchError
from bench.core.outcomes import Outcomes, Verdict
from bench.core.statistics import Count, count_interval
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.plan import Selection
from bench.plugin import Attack
from bench.registry.registry import Registry
from bench.registry.validation import why_mistyped
from bench.registry.variants import parameter_values

CONVERGED_GAIN = 0.01
"""Share of the examples that the last doubling of the steps may still break."""


@dataclass(frozen=True)
class SweepPoint:
    """One variant of an attack against one defense."""

    parameters: Mapping[str, Any]
    """The parameters that were set."""
    attack: Attack
    robust: Count
    late: int
    """Examples that were first broken in the second half of a restart's steps."""

    @property
    def converged(self) -> bool:
        """Whether the last doubling of the steps broke at most one point."""
        return self.late <= CONVERGED_GAIN * self.robust.n


def variants(
    attack: Attack, grid: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], Attack]]:
    """Every combination of the grid's values, text read as their types, as parameters and attack.

    Random numbers are keyed by name, so that all variants have the same random starts. Raises
    BenchError where the attack has no such parameter, or a value has another type or is refused.
    """
    for values in itertools.product(*grid.values()):
        chosen = parameter_values(attack, dict(zip(grid, values, strict=True)))
        made: Any = dataclasses.replace(attack, **chosen)  # type: ignore[type-var]
        wrong = why_mistyped("attack", made)
        if wrong:
            raise BenchError(f"{attack.name} with {chosen} {wrong}.")
        yield chosen, made


def sweep(
    registry: Registry,
    selection: Selection,
    grid: Mapping[str, Sequence[Any]],
    device: torch.device | str = "cpu",
) -> list[SweepPoint]:
    """Evaluate every variant of the one attack of a selection against its one defense.

    Raises BenchError where the selection names more, or the attack does not apply.
    """
    pair = plan.single_pair(registry, selection, "a sweep")
    cache = DefenseCache(
        registry=registry, selection=selection, settings=RunSettings(torch.device(device))
    )
    defense, surrogate = cache.defense(pair.defense, pair.threat), cache.surrogate(pair)
    points = []
    for chosen, attack in variants(pair.attack, grid):
        variant = dataclasses.replace(pair, attack=attack)
        outcomes = CellPlayer("none").outcomes(variant, defense, surrogate)
        points.append(_point(chosen, attack, outcomes))
    return points


def _point(chosen: Mapping[str, Any], attack: Attack, outcomes: Outcomes) -> SweepPoint:
    broken = outcomes.verdict == int(Verdict.BROKEN)
    robust = len(outcomes.survivors())
    late = int(np.count_nonzero(broken & (2 * outcomes.step > attack.steps)))
    return SweepPoint(chosen, attack, count_interval(robust, len(outcomes.verdict)), late)
