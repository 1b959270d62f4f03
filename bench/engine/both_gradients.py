"""Adds the true gradient to an attack that has used a declared BPDA approximation.

An approximation that its author chose may hide a gradient that would have helped, so it never
replaces the true gradient: the attack runs with the approximation first, and then again, on the
items that this has not broken, with the gradient of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.core.outcomes import TRUE_GRADIENT_RESTART
from bench.engine.cell_spec import Candidates, CellSpec, concatenate, select_rows
from bench.threats.access import Budget
from bench.threats.norms import per_row

Run = Callable[[CellSpec, Sequence[int]], Iterator[Candidates]]
"""(cell, items that are not run) -> the candidates of every other item, in chunks."""


def run_with_both_gradients(spec: CellSpec, true: CellSpec, run: Run) -> Iterator[Candidates]:
    """Runs an attack with the BPDA approximation, then with the true gradient where that failed.

    A limited budget is divided equally between both. Counts add up over both runs; the restarts of
    the second run are numbered from TRUE_GRADIENT_RESTART.

    Args:
        spec: the cell, whose model access has the approximation.
        true: the same cell with the model's own gradient.
        run: runs the attack of a cell on the items that are not excluded.

    Yields:
        Each item exactly once, in chunks.
    """
    half = Budget(_half(spec.budget.gradients), _half(spec.budget.queries))
    spec, true = replace(spec, budget=half), replace(true, budget=half)
    open_parts: list[Candidates] = []
    for part in run(spec, ()):
        claimed = part.step >= 0
        if claimed.any():
            yield select_rows(part, claimed)
        open_parts.append(select_rows(part, ~claimed))
    first = concatenate(open_parts) if open_parts else None
    if first is None or not len(first.item):
        return
    position = torch.full((len(spec.x),), -1)
    position[first.item] = torch.arange(len(first.item))
    excluded = (position < 0).nonzero()[:, 0].tolist()
    for part in run(true, excluded):
        mine = select_rows(part, position[part.item] >= 0)
        if len(mine.item):
            yield _joined(select_rows(first, position[mine.item]), mine)


def _half(limit: int | None) -> int | None:
    return None if limit is None else limit // 2


def _joined(first: Candidates, second: Candidates) -> Candidates:
    """The candidates of the second run, with the costs of both; rows of the same items.

    Where neither run has a claim, the image of the nearer success outside the ball is kept.
    """
    claimed = second.step >= 0
    keep_first = ~claimed & (first.distance < second.distance)
    return second._replace(
        image=_where(keep_first, first.image, second.image),
        forwards=first.forwards + second.forwards,
        gradients=first.gradients + second.gradients,
        final_checks=first.final_checks + second.final_checks,
        restart=torch.where(claimed, second.restart + TRUE_GRADIENT_RESTART, second.restart),
        distance=torch.where(keep_first, first.distance, second.distance),
    )


def _where(keep: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(per_row(keep.to(first.device), first), first, second)
