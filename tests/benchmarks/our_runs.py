"""Runs of this project: registered attacks, run by the engine and verified by the referee."""

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
from bench.engine.fast_forms import CudaGraphModel
from bench.engine.fast_selftest import FastModel, fastest_form
from bench.engine.model_access import ModelAccess
from bench.engine.problem import pad_rows
from bench.engine.runner import run_attack
from bench.plugin import Attack, Goal, PerturbationSet, Traits
from bench.referee.referee import Referee
from bench.registry.registry import Registry
from bench.threats.access import Budget
from tests.benchmarks.cases import Case
from tests.benchmarks.run_result import RunResult, counted, referee, verified_images
from tests.benchmarks.unit_cost import now

PROBES = 32
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square-5000")

Runner: TypeAlias = Callable[[Case, int], RunResult]
"""(case, seed) -> the result of one run over the examples of the case."""


class RunOptions(NamedTuple):
    """Options of a run: arithmetic, goal, perturbation set, slots, order."""

    numeric: Numeric = Numeric.FLOAT32
    audit: bool = True
    """Whether a sample of the examples unbroken in low precision is run again in float32."""
    goal: Goal = Goal()
    ball: PerturbationSet | None = None
    """None: the ball of the case."""
    slots: int = 128
    order: Sequence[int] | None = None
    finished: Sequence[int] = ()
    graphs: bool = True
    """Whether a form of the model may use CUDA graphs."""
    heartbeat: Callable[[], None] = lambda: None
    """Called after each step of the engine."""


DEFAULT_OPTIONS = RunOptions()


@functools.cache
def registry() -> Registry:
    """All plugins, loaded once."""
    return Registry.load()


def attack(name: str, **changes: Any) -> Attack:
    """The registered attack with changed parameters; UnavailableError for an unknown name."""
    if name == "pgd-twice":
        return attack("pgd-restarts", restarts=2)
    found = registry().attacks.get(name)
    if found is None:
        raise UnavailableError(f"there is no attack {name} here; the target needs it.")
    chosen: Attack = found.value
    return replace(chosen, **changes) if changes else chosen  # type: ignore[type-var]


def ours(name: str, options: RunOptions = DEFAULT_OPTIONS, **changes: Any) -> Runner:
    """The runner of one attack."""
    return lambda case, seed: run(case, attack(name, **changes), options, seed)


def cascade(names: Sequence[str], options: RunOptions = DEFAULT_OPTIONS) -> Runner:
    """The runner of several attacks, each on the examples that the earlier ones left."""

    def runner(case: Case, seed: int) -> RunResult:
        result = run(case, attack(names[0]), options, seed)
        for name in names[1:]:
            broken = result.broken.nonzero()[:, 0].tolist()
            result = cascade_result(
                result, run(case, attack(name), options._replace(finished=broken), seed)
            )
        return result

    return runner


def cascade_result(first: RunResult, then: RunResult) -> RunResult:
    """The result of two runs, the second on the examples that the first left."""
    where = first.broken
    image = torch.where(where.view(-1, 1, 1, 1), first.image, then.image)
    return RunResult(
        where | then.broken, torch.where(where, first.distance, then.distance), image,
        first.seconds + then.seconds, first.forwards + then.forwards,
        first.gradients + then.gradients, first.calls + then.calls,
    )  # fmt: skip


def run(case: Case, chosen: Attack, options: RunOptions, seed: int) -> RunResult:
    """Run an attack, timed; then verify every image, untimed."""
    fast = fast_model(case, options.numeric, graphs=options.graphs)
    ball, minimises = options.ball or case.ball, Traits.of(chosen).minimises
    rules = referee(case, ball, options.goal, minimises=minimises)
    cell = CellSpec(
        attack=chosen, model_access=ModelAccess(fast.module),
        defense=ModelAccess(case.model), ball=ball,
        goal=options.goal, budget=Budget(), x=case.x, y=case.y, target=torch.full_like(case.y, -1),
        clean_logits=case.clean_logits, reached_on_clean=~case.correct,
        seed=seed, slots=options.slots, heartbeat=options.heartbeat,
    )  # fmt: skip
    exact = (
        replace(cell, model_access=ModelAccess(case.model))
        if fast.low_precision and options.audit
        else None
    )
    # Calls only: the ledger holds the other counts, and a hook on each output would cost time.
    count = functools.partial(counted, gradients=False)
    with count(case.model) as original, count(fast.module) as converted:
        since = now(case.x.device)
        parts = list(
            run_attack(
                cell, rules.confirm, finished=options.finished, order=options.order, exact=exact
            )
        )
        seconds = now(case.x.device) - since
    calls = original.calls
    if fast.module is not case.model:
        calls += converted.calls
    return to_result(case, rules, parts, seconds, calls)


def to_result(
    case: Case, rules: Referee, parts: list[Candidates], seconds: float, calls: int
) -> RunResult:
    """The result of all chunks; examples that were not run stay clean and unbroken."""
    image = case.x.clone()
    for part in parts:
        image[part.item.to(image.device)] = part.image.to(image)
    broken, distance = verified_images(rules, image)
    count = len(case.x)
    forwards = sum(int((part.forwards + part.final_checks).sum()) for part in parts) / count
    gradients = sum(int(part.gradients.sum()) for part in parts) / count
    return RunResult(broken | ~case.correct, distance, image, seconds, forwards, gradients, calls)


FAST_MODELS: dict[tuple[nn.Module, Numeric], FastModel] = {}


def fast_model(case: Case, numeric: Numeric, *, graphs: bool = True) -> FastModel:
    """The fastest form of a case's model; its self-tests run once per model and arithmetic.

    Without `graphs` it is the form that the CUDA graphs would record.
    """
    key = case.model, numeric
    if key not in FAST_MODELS:
        FAST_MODELS[key] = fastest_form(case.model, pad_rows(case.x[:PROBES], PROBES), numeric)
    fast = FAST_MODELS[key]
    if not graphs and isinstance(fast.module, CudaGraphModel):
        return fast._replace(module=fast.module.module, applied=fast.applied[:-1])
    return fast
