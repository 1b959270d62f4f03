"""The audit of low precision: a sample of the unbroken examples is run again in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.engine.cell_spec import Candidates, CellSpec, Confirm, select_rows
from bench.engine.parallel_restarts import run_items
from bench.threats.random_numbers import KeyedRandomNumbers, example_key

AUDIT_SHARE = 0.05  # of the survivors
MIN_AUDITED = 100  # survivors; all where there are fewer


@dataclass(frozen=True)
class PrecisionAudit:
    """The result of the audit of one cell."""

    survivors: int
    """Examples that low precision left unbroken."""
    sampled: int
    """Survivors that were run again in float32."""
    broken: int
    """Sampled survivors that float32 broke; with one or more, every survivor is run again."""


def run_audited(
    low_precision: CellSpec,
    exact: CellSpec,
    confirm: Confirm,
    items: Sequence[int],
    on_audit: Callable[[PrecisionAudit], None],
) -> Iterator[Candidates]:
    """Runs items in low precision, then a sample of the survivors in float32.

    Args:
        low_precision: the cell in low precision.
        exact: the same cell in float32.
        confirm: the referee's rule, on the unmodified defense.
        items: in the order in which they take slots.
        on_audit: called with the result of the audit.

    Yields:
        Each item exactly once: successes as they come, survivors at the end.
    """
    unbroken: list[Candidates] = []
    for part in run_items(low_precision, confirm, items):
        claimed = part.step >= 0
        yield from nonempty_rows(part, claimed)
        unbroken += nonempty_rows(part, ~claimed)
    survivors = torch.cat([part.item for part in unbroken]).tolist() if unbroken else []
    sample = sampled_survivors(survivors, low_precision.seed)
    again = list(run_items(exact, confirm, sample))
    broken = sum(int((part.step >= 0).sum()) for part in again)
    on_audit(PrecisionAudit(len(survivors), len(sample), broken))
    yield from again
    if broken:
        sampled = set(sample)
        rest = [item for item in survivors if item not in sampled]
        yield from run_items(exact, confirm, rest)
        return
    known = torch.tensor(sample, dtype=torch.int64)
    for part in unbroken:
        yield from nonempty_rows(part, ~torch.isin(part.item, known))


def sampled_survivors(survivors: Collection[int], seed: int) -> list[int]:
    """A twentieth of the survivors, at least 100, drawn by the seed alone."""
    items = torch.tensor(sorted(survivors), dtype=torch.int64)
    count = min(len(items), max(MIN_AUDITED, round(AUDIT_SHARE * len(items))))
    zero = torch.zeros_like(items)
    rank = KeyedRandomNumbers(example_key(seed, "audit", items, zero), zero).uniform("rank", (1,))[
        :, 0
    ]
    picked: list[int] = items[rank.argsort(stable=True)[:count]].tolist()
    return picked


def nonempty_rows(part: Candidates, rows: Tensor) -> list[Candidates]:
    """A list with the rows `rows` [n] bool of a chunk; empty where there are none."""
    return [select_rows(part, rows)] if rows.any() else []
