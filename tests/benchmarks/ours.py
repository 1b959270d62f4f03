"""Our side: attacks by their registered names, played by the engine and watched by the referee."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from bench.core.cells import Numeric
from bench.core.errors import UnavailableError
from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.fast_selftest import FastModel, fastest_form
from bench.engine.model_access import ModelAccess
from bench.engine.problem import pad_rows
from bench.engine.runner import run_attack
from bench.plugin import Attack, Goal, PerturbationSet, Traits
from bench.referee.referee import Referee
from bench.registry.registry import Registry
from bench.threats.access import Budget
from tests.benchmarks.models import World
from tests.benchmarks.outcome import Outcome, counted, judged, referee
from tests.benchmarks.unit_cost import now

PROBES = 32
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square-5000")

Side: TypeAlias = Callable[[World, int], Outcome]
"""(world, seed) -> what this side makes of it."""


class Way(NamedTuple):
    """How a cell is played, beside attack and examples."""

    numeric: Numeric = Numeric.FLOAT32
    audit: bool = True
    """Survivors of low precision are played again in float32, by sample."""
    goal: Goal = Goal()
    ball: PerturbationSet | None = None
    """None: the world's own."""
    slots: int = 128
    order: Sequence[int] | None = None
    finished: Sequence[int] = ()


PLAIN = Way()


@functools.cache
def registry() -> Registry:
    """Every plugin there is."""
    return Registry.load()


def attack(name: str, **changes: Any) -> Attack:
    """The registered attack with other settings; UnavailableError where none has this name."""
    if name == "pgd-twice":
        return attack("pgd-restarts", restarts=2)
    found = registry().attacks.get(name)
    if found is None:
        raise UnavailableError(f"there is no attack {name} here; the target needs it.")
    chosen: Attack = found.value
    return replace(chosen, **changes) if changes else chosen  # type: ignore[type-var]


def ours(name: str, way: Way = PLAIN, **changes: Any) -> Side:
    """The side that plays one attack."""
    return lambda world, seed: run(world, attack(name, **changes), way, seed)


def cascade(names: Sequence[str], way: Way = PLAIN) -> Side:
    """The side that plays attacks one after another, each on what the earlier ones left."""

    def side(world: World, seed: int) -> Outcome:
        outcome = run(world, attack(names[0]), way, seed)
        for name in names[1:]:
            broken = outcome.broken.nonzero()[:, 0].tolist()
            outcome = joined(outcome, run(world, attack(name), way._replace(finished=broken), seed))
        return outcome

    return side


def joined(first: Outcome, then: Outcome) -> Outcome:
    """Two runs as one; the second played only what the first had left."""
    where = first.broken
    image = torch.where(where.view(-1, 1, 1, 1), first.image, then.image)
    return Outcome(
        where | then.broken, torch.where(where, first.distance, then.distance), image,
        first.seconds + then.seconds, first.forwards + then.forwards,
        first.gradients + then.gradients, first.calls + then.calls,
    )  # fmt: skip


def run(world: World, chosen: Attack, way: Way, seed: int) -> Outcome:
    """Play, on the clock; then judge every image."""
    quick = faster(world, way.numeric)
    ball, minimises = way.ball or world.ball, Traits.of(chosen).minimises
    rules = referee(world, ball, way.goal, minimises=minimises)
    game = CellSpec(
        attack=chosen, model_access=ModelAccess(quick.module),
        defense=ModelAccess(world.model), ball=ball,
        goal=way.goal, budget=Budget(), x=world.x, y=world.y, aim=torch.full_like(world.y, -1),
        clean=world.clean, lost=~world.right, seed=seed, slots=way.slots,
    )  # fmt: skip
    exact = replace(game, model_access=ModelAccess(world.model)) if quick.rounds and way.audit else None
    # Calls only: all else is in the ledger, and a hook on each answer would be on our clock.
    asked = functools.partial(counted, gradients=False)
    with asked(world.model) as slow, asked(quick.module) as fast:
        since = now(world.x.device)
        parts = list(
            run_attack(game, rules.confirm, finished=way.finished, order=way.order, exact=exact)
        )
        seconds = now(world.x.device) - since
    calls = slow.calls if quick.module is world.model else slow.calls + fast.calls
    return gathered(world, rules, parts, seconds, calls)


def gathered(
    world: World, rules: Referee, parts: list[Candidates], seconds: float, calls: int
) -> Outcome:
    """One outcome of all chunks; what was not played stays as it was, unbroken."""
    image = world.x.clone()
    for part in parts:
        image[part.item.to(image.device)] = part.image.to(image)
    broken, distance = judged(rules, image)
    count = len(world.x)
    forwards = sum(int((part.forwards + part.looks).sum()) for part in parts) / count
    gradients = sum(int(part.gradients.sum()) for part in parts) / count
    return Outcome(broken | ~world.right, distance, image, seconds, forwards, gradients, calls)


FASTER: dict[tuple[nn.Module, Numeric], FastModel] = {}


def faster(world: World, numeric: Numeric) -> FastModel:
    """A world's model in cheaper arithmetic; its self-tests are made once, not for each attack."""
    key = world.model, numeric
    if key not in FASTER:
        FASTER[key] = fastest_form(world.model, pad_rows(world.x[:PROBES], PROBES), numeric)
    return FASTER[key]
