"""Low precision, watched: what it calls unbroken is played again in float32, by sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.engine.cell_spec import Candidates, CellSpec, Confirm, select_rows
from bench.engine.parallel_restarts import run_items
from bench.threats.random_numbers import KeyedRandomNumbers, example_key

SHARE = 0.05
LEAST = 100  # survivors; all where there are fewer


@dataclass(frozen=True)
class PrecisionAudit:
    """What the sample said."""

    survivors: int
    sampled: int
    broken: int
    """Of the sample, in float32; one is enough to play every survivor again."""


def run_audited(
    low_precision: CellSpec,
    exact: CellSpec,
    confirm: Confirm,
    items: Sequence[int],
    on_audit: Callable[[PrecisionAudit], None],
) -> Iterator[Candidates]:
    """Play `items` in `quick`; the successes stand, the survivors are audited in `exact`.

    Args:
        quick: the cell in low precision.
        exact: the same cell in float32.
        confirm: the referee's rule, on the unmodified defense.
        items: in the order in which they are taken up.
        heard: is told what the audit said.

    Yields:
        Each item exactly once: successes as they come, survivors at the end.
    """
    held: list[Candidates] = []
    for part in run_items(low_precision, confirm, items):
        claimed = part.step >= 0
        yield from nonempty_rows(part, claimed)
        held += nonempty_rows(part, ~claimed)
    survivors = torch.cat([part.item for part in held]).tolist() if held else []
    sample = sampled_survivors(survivors, low_precision.seed)
    again = list(run_items(exact, confirm, sample))
    fell = sum(int((part.step >= 0).sum()) for part in again)
    on_audit(PrecisionAudit(len(survivors), len(sample), fell))
    yield from again
    if fell:
        sampled = set(sample)
        rest = [item for item in survivors if item not in sampled]
        yield from run_items(exact, confirm, rest)
        return
    known = torch.tensor(sample, dtype=torch.int64)
    for part in held:
        yield from nonempty_rows(part, ~torch.isin(part.item, known))


def sampled_survivors(survivors: Collection[int], seed: int) -> list[int]:
    """A twentieth of the survivors, at least a hundred; which, depends on the seed alone."""
    items = torch.tensor(sorted(survivors), dtype=torch.int64)
    count = min(len(items), max(LEAST, round(SHARE * len(items))))
    zero = torch.zeros_like(items)
    rank = KeyedRandomNumbers(example_key(seed, "audit", items, zero), zero).uniform("rank", (1,))[
        :, 0
    ]
    picked: list[int] = items[rank.argsort(stable=True)[:count]].tolist()
    return picked


def nonempty_rows(part: Candidates, rows: Tensor) -> list[Candidates]:
    """These rows [n] bool of a chunk, unless there are none."""
    return [select_rows(part, rows)] if rows.any() else []
