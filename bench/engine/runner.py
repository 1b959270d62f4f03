"""Runs the attack of a cell and yields its candidates.

Each slot runs one example in one restart. Success is seen on the answers that the attack's own
queries get; an item leaves its slot as soon as its outcome is known, and the next item takes the
slot. No result of an example depends on its slot, on the other examples in the batch, or on when
they leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.engine.cell_spec import Candidates, CellSpec, Confirm
from bench.engine.external_run import run_external
from bench.engine.parallel_restarts import run_items
from bench.engine.precision_audit import PrecisionAudit, run_audited
from bench.engine.scheduler import Scheduler
from bench.engine.transfer_run import can_share_iterates, run_transfer
from bench.plugin import Traits


def run_attack(
    spec: CellSpec,
    confirm: Confirm,
    *,
    finished: Sequence[int] = (),
    order: Sequence[int] | None = None,
    exact: CellSpec | None = None,
    on_audit: Callable[[PrecisionAudit], None] = lambda audit: None,
) -> Iterator[Candidates]:
    """Runs the attack on every item that is not finished.

    Args:
        spec: the cell.
        confirm: the referee's rule, applied before an item is retired as broken.
        finished: items that are not run again.
        order: the order in which items take slots; results do not depend on it. By default
            items with the largest clean margin come first, because they take the longest.
        exact: the same cell in float32 where `spec` is in low precision: a sample of its
            survivors is run again in `exact`.
        on_audit: called with the result of that audit.

    Yields:
        Each item exactly once, in chunks.
    """
    skip = set(finished)
    order = spec.largest_margin_first() if order is None else order
    items = [item for item in order if item not in skip]
    if Traits.is_external(spec.attack):
        yield from run_external(spec, spec.attack, confirm, set(items))
        return
    if exact is not None:
        yield from run_audited(spec, exact, confirm, items, on_audit)
        return
    if spec.iterates is not None and can_share_iterates(spec):
        yield from run_transfer(spec, confirm, items, spec.iterates)
        return
    if spec.noise is None:
        yield from run_items(spec, confirm, items)
        return
    for rows in spec.noise_groups(items):
        yield from Scheduler(spec, confirm, list(rows)).run()
