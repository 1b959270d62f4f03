"""The steps of an attack on one example: loss, distance and success of each iterate."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.engine.attack_view import started, stepped
from bench.engine.cell_spec import CellSpec
from bench.engine.problem import BatchProblem, checked_restart_count, points_of
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.plan import Selection
from bench.plugin import StopRule, Traits, cross_entropy, is_shared, margin
from bench.registry.registry import Registry
from bench.results.export import written_whole


@dataclass(frozen=True)
class TraceStep:
    """The iterate of one example after a number of steps of one restart."""

    restart: int
    step: int
    """Steps made; 0 is the start."""
    loss: float
    """Cross-entropy of the label; of the target, with its sign reversed, where the goal has one."""
    margin: float
    """Largest other logit less that of the label; positive exactly where the label is wrong. For a
    targeted goal that of the target, with its sign reversed."""
    distance: float
    """From the clean image, in the norm of the set."""
    inside: bool
    """Whether the iterate is in the perturbation set."""
    label: int
    """The predicted class; -1 for logits that are not finite."""
    success: bool
    """Whether the iterate reaches the goal inside the set."""
    queried_success: bool
    """Whether a query of the step that led to this iterate did."""
    queries: int
    """Queries of the attack so far, over all restarts."""

    def record(self) -> dict[str, Any]:
        """The step as JSON values; a figure that is not finite is None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def trace_attack(
    registry: Registry,
    selection: Selection,
    example: int = 0,
    device: torch.device | str = "cpu",
) -> list[TraceStep]:
    """Run the one attack of a selection on one example of its one defense, step by step.

    Random numbers are those of a run, and so is the end: where the attack stops at its first
    success, the trace does. Gradients are those of the declared BPDA approximation, if any.
    Nothing is judged by the referee or stored.

    Args:
        registry: the plugins.
        selection: one threat model, defense and attack.
        example: the number of the example; of a goal of all targets its first target is taken.
        device: where the model runs.

    Returns:
        The start and every step of each restart.

    Raises:
        BenchError: the selection names more, the attack makes no steps or does not apply, the
            defense is random, or there is no such example.
    """
    pair = plan.single_pair(registry, selection, "a trace")
    if not Traits.has_steps(pair.attack):
        own = "fit" if is_shared(pair.attack) else "run"
        raise BenchError(f"{pair.attack.name} has a {own} of its own and makes no steps to trace.")
    if pair.defense.randomness is not None or pair.threat.nuisance is not None:
        random = pair.defense if pair.threat.nuisance is None else pair.threat
        raise BenchError(
            f"{random.name} is random, and its draws belong to whole groups of examples; "
            "trace the attack on another one."
        )
    cache = DefenseCache(
        registry=registry, selection=selection, settings=RunSettings(torch.device(device))
    )
    defense, planned = cache.defense(pair.defense, pair.threat), cache.surrogate(pair)
    surrogate = None if planned is None else planned.model(lambda: None)
    defense.clean_pass(lambda: None)
    spec = defense.cell_spec(pair.threat, pair.attack, surrogate, exact=True)
    targets = len(spec.x) // len(defense.y)
    if not 0 <= example < len(defense.y):
        raise BenchError(f"the example is {example}; there are 0 to {len(defense.y) - 1}.")
    return list(_steps(spec, example * targets))


def _steps(spec: CellSpec, item: int) -> Iterator[TraceStep]:
    """The iterates of one item of a cell over its restarts."""
    rows = torch.tensor([item], device=spec.x.device)
    problem = BatchProblem(
        spec.model_access, spec.ball, spec.goal, spec.x[rows], spec.y[rows],
        target=spec.target[rows], clean_logits=spec.clean_logits[rows], example=rows,
        seed=spec.seed, name=spec.attack.name, budget=spec.budget,
    )  # fmt: skip
    hits: list[bool] = []

    def observe(adv: Tensor, answer: Tensor, charged: Tensor) -> None:
        # A transfer attack queries another model, whose answers decide nothing here.
        found = problem.reaches_goal(answer) & spec.ball.contains(adv, problem.x) & charged
        hits.append(bool(found) and not Traits.of(spec.attack).source)

    problem.on_query = observe
    rule = Traits.of(spec.attack).stop_rule
    for restart in range(checked_restart_count(spec.attack, spec.clean_logits.shape[1])):
        problem.restart = torch.full_like(rows, restart)
        problem.t = torch.zeros_like(rows)
        problem.reset_keys()
        state = started(spec.attack, problem.at_start(torch.zeros_like(rows)))
        last = _trace_step(spec, problem, rows, points_of(state))
        yield last
        for _ in range(spec.attack.steps):
            hits.clear()
            state = stepped(spec.attack, problem, state)
            ended = rule is StopRule.FIRST_SUCCESS and any(hits)
            if ended and last.success:
                return  # the query of the iterate before
            problem.t = problem.t + 1
            last = _trace_step(spec, problem, rows, points_of(state))
            yield replace(last, queried_success=any(hits))
            if ended:
                return
            if rule is StopRule.CONVERGENCE and bool(spec.attack.done(state).all()):  # type: ignore[attr-defined]
                break
        if last.success and rule is StopRule.FIRST_SUCCESS:
            return  # the final check finds the last iterate


def _trace_step(spec: CellSpec, problem: BatchProblem, rows: Tensor, adv: Tensor) -> TraceStep:
    """What one iterate [1, ...] shows, by a query that the attack is not charged for."""
    answer = spec.defense.logits(problem.images(adv))
    logits = answer[:, : problem.classes]
    targeted = spec.goal.kind == "targeted"
    label, sign = (problem.target, -1.0) if targeted else (problem.y, 1.0)
    inside = bool(spec.ball.contains(adv, problem.x))
    reached = bool(spec.reaches_goal(answer, rows))
    return TraceStep(
        restart=int(problem.restart),
        step=int(problem.t),
        loss=sign * float(cross_entropy(logits, label)),
        margin=sign * float(margin(logits, label)),
        distance=float(spec.ball.distance(adv.double(), problem.x.double())),
        inside=inside,
        label=int(logits.argmax(1)) if bool(logits.isfinite().all()) else -1,
        success=inside and reached,
        queried_success=False,
        queries=int(problem.ledger.forwards),
    )


def write_trace(steps: Sequence[TraceStep], path: Path) -> None:
    """Write the steps as CSV. Raises UnavailableError where the file cannot be written."""
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(TraceStep))
        writer.writerows(astuple(step) for step in steps)
