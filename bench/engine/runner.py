"""Plays a cell: fixed slots, retirement, refill, runs, pooled last looks; a generator of attempts.

A row is one example in one run. Success is seen on the answer that the attack's own query got; a
row leaves as soon as its verdict cannot change, and the next example takes its slot. Nothing an
example gets depends on its slot, on its companions or on when the others leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.engine.cell_spec import NOISE_GROUP, Candidates, CellSpec, Confirm
from bench.engine.external_run import run_external
from bench.engine.parallel_restarts import run_items
from bench.engine.precision_audit import PrecisionAudit, run_audited
from bench.engine.scheduler import Scheduler
from bench.plugin import Traits


def run_attack(
    game: CellSpec,
    confirm: Confirm,
    *,
    finished: Sequence[int] = (),
    order: Sequence[int] | None = None,
    exact: CellSpec | None = None,
    on_audit: Callable[[PrecisionAudit], None] = lambda audit: None,
) -> Iterator[Candidates]:
    """Play every item that is not finished.

    Args:
        game: the cell.
        confirm: the referee's rule, asked before a row is retired as won.
        finished: items that are not to be played again.
        order: the order in which items are taken up; results do not depend on it. By default
            the firmest clean answers come first: what plays longest must not begin last.
        exact: the same cell in float32, where `game` is played in low precision: its survivors
            are audited by sample.
        heard: is told what such an audit said.

    Yields:
        Each item exactly once, in chunks.
    """
    skip = set(finished)
    items = [
        item
        for item in (game.largest_margin_first() if order is None else order)
        if item not in skip
    ]
    if Traits.is_external(game.attack):
        yield from run_external(game, game.attack, confirm, set(items))
        return
    if exact is not None:
        yield from run_audited(game, exact, confirm, items, on_audit)
        return
    if game.noise is None:
        yield from run_items(game, confirm, items)
        return
    # A group is played whole: its random draws belong to all of its rows.
    for group in sorted({item // NOISE_GROUP for item in items}):
        game.noise.begin(group)
        rows = range(group * NOISE_GROUP, min((group + 1) * NOISE_GROUP, len(game.x)))
        yield from Scheduler(game, confirm, list(rows)).play()
