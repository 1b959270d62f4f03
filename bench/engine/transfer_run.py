"""Runs an attack that queries a surrogate model only; its iterates serve every defense.

Nothing that such an attack does depends on the defense, so the last iterate of a restart is
computed once for a surrogate and then checked against each defense. Outcomes and costs are those of
running the attack anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.engine.attack_view import started, stepped
from bench.engine.cell_spec import (
    Candidates,
    CellSpec,
    Confirm,
    EndedRestarts,
    concatenate,
    select_rows,
)
from bench.engine.final_check import FinalCheck
from bench.engine.problem import (
    BatchProblem,
    checked_restart_count,
    pad_rows,
    padded_size,
    points_of,
)
from bench.engine.surrogate_iterates import LastIterates, SurrogateIterates
from bench.engine.transfers import to_device
from bench.plugin import StopRule, Traits
from bench.threats.access import Budget


def can_share_iterates(spec: CellSpec) -> bool:
    """Whether the iterates of this cell depend on the surrogate alone.

    A budget ends restarts early, and a target class may follow from the answers of the defense.
    """
    traits = Traits.of(spec.attack)
    return (
        bool(traits.source)
        and not Traits.is_external(spec.attack)
        and traits.stop_rule is not StopRule.CONVERGENCE
        and spec.budget == Budget()
        and spec.goal.kind == "untargeted"
    )


def run_transfer(
    spec: CellSpec, confirm: Confirm, items: Sequence[int], iterates: SurrogateIterates
) -> Iterator[Candidates]:
    """Yields the candidates of these items, each once; iterates that are missing are added.

    Of a declared-random defense the items' whole noise groups, each in one chunk: its random draws
    belong to all of its rows.
    """
    if spec.noise is not None:
        for rows in spec.noise_groups(items):
            chunk = concatenate(list(_run_part(spec, confirm, rows, iterates)))
            yield select_rows(chunk, chunk.item.argsort())
        return
    for first in range(0, len(items), spec.slots):
        yield from _run_part(spec, confirm, items[first : first + spec.slots], iterates)


def _run_part(
    spec: CellSpec, confirm: Confirm, items: Sequence[int], iterates: SurrogateIterates
) -> Iterator[Candidates]:
    """The candidates of at most as many items as a batch has, restart after restart."""
    reached = set(spec.reached_on_clean.nonzero()[:, 0].tolist())
    clean = [item for item in items if item in reached]
    if clean:
        yield Candidates.of_clean_images(spec, clean)
    check = FinalCheck(spec, confirm)
    spent = {item: (0, 0) for item in items if item not in reached}
    restarts = checked_restart_count(spec.attack, spec.clean_logits.shape[1])
    for restart in range(restarts):
        if not spent:
            return
        found = _last_iterates(spec, list(spent), restart, iterates)
        before = torch.tensor(list(spent.values()), dtype=torch.int64)
        forwards, gradients = before[:, 0] + found.forwards, before[:, 1] + found.gradients
        costs = zip(forwards.tolist(), gradients.tolist(), strict=True)
        check.pending.append(
            _ended(spec, list(spent), restart, restarts, found.point, forwards, gradients)
        )
        spent = dict(zip(spent, costs, strict=True))
        if check.full or restart + 1 == restarts:
            finished, _, _ = check.run()
            if len(finished.item):
                yield finished
            for item in finished.item.tolist():
                del spent[item]


def _ended(
    spec: CellSpec,
    items: Sequence[int],
    restart: int,
    restarts: int,
    point: Tensor,
    forwards: Tensor,
    gradients: Tensor,
) -> EndedRestarts:
    """The ended restarts of these items [m], none of which has succeeded before."""
    item = torch.tensor(items, dtype=torch.int64)
    none = torch.full_like(item, -1)
    return EndedRestarts(
        item=item, restart=torch.full_like(item, restart),
        final=torch.full_like(item, restart + 1 >= restarts, dtype=torch.bool), image=point,
        forwards=forwards, gradients=gradients, step=torch.full_like(item, spec.attack.steps),
        nearest_image=point, nearest_distance=torch.full_like(item, math.inf, dtype=torch.float64),
        nearest_step=none, nearest_restart=none,
    )  # fmt: skip


def _last_iterates(
    spec: CellSpec, items: Sequence[int], restart: int, iterates: SurrogateIterates
) -> LastIterates:
    """The last iterates of these items [m], made where they are not known."""
    missing = iterates.missing(items, restart)
    if missing:
        made = _play(spec, missing, restart)
        iterates.add(missing, restart, made)
        if iterates.missing(missing, restart):
            # There is no room for all of them.
            return made if missing == list(items) else _play(spec, items, restart)
    return iterates.known(items, restart)


def _play(spec: CellSpec, items: Sequence[int], restart: int) -> LastIterates:
    """Makes every step of one restart of these items [m] on the surrogate."""
    count, device = len(items), spec.x.device
    rows = to_device(pad_rows(torch.tensor(items), padded_size(count)), device)
    problem = BatchProblem(
        spec.model_access, spec.ball, spec.goal, spec.x[rows], spec.y[rows],
        target=spec.target[rows], clean_logits=spec.clean_logits[rows],
        example=rows.clone(), seed=spec.seed, name=spec.attack.name, budget=spec.budget,
    )  # fmt: skip
    problem.restart = torch.full_like(rows, restart)
    problem.active = torch.arange(len(rows), device=device) < count
    problem.reset_keys()
    every = torch.arange(len(rows), device=device)
    state = started(spec.attack, problem.at_start(every))
    for _ in range(spec.attack.steps):
        state = stepped(spec.attack, problem, state)
        problem.t = problem.t + 1
        spec.heartbeat()
    ledger = problem.ledger
    return LastIterates(
        points_of(state)[:count].detach(),
        ledger.forwards[:count].cpu(),
        ledger.gradients[:count].cpu(),
    )
