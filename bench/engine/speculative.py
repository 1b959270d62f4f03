"""Speculative queries: several steps of a random search in one batch.

A random search keeps its image until a proposal is better, and its random numbers are keyed by the
step. So all queries of a row up to its next change are known in advance. They are evaluated in one
batch; the row continues after the first query that changed it or reached the goal, and is charged
for the queries up to that one, as if they had been made one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.engine.attack_view import stepped
from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BATCH_UNIT, BatchProblem, map_state, points_of, tensors_of
from bench.engine.query_cache import QueryCache
from bench.engine.values import checked_column
from bench.plugin import State, StopRule, Traits
from bench.threats.access import Budget
from bench.threats.norms import per_row

MAX_BATCHES = 16  # full batches in one speculative batch; an attack's own arithmetic gains from it
MAX_PIXELS = 2**23  # of one speculative batch, where that is more than a full batch has
EXPECTED_SHARE = 0.25  # of the queries expected before a row's next change; later ones are wasted
MIN_GAIN = 1.25  # queries for each row; for fewer a plain step is cheaper
DECAY = 0.9  # weight of the past in the running share of queries that change their row
UnchangedRule = Callable[[State, State], Tensor]
"""(state before a step, state after it) -> [n] bool: the step left the row unchanged."""


class SpeculativeStep(NamedTuple):
    """The steps made with one speculative batch: one entry for each of m rows."""

    steps: Tensor
    """[m] int64: the steps that the row has made."""
    success: Tensor
    """[m] bool: the query of the last step reached the goal."""
    images: Tensor
    """[m, ...]: the point of that query."""
    logits: Tensor
    """[m, K]: its answer."""
    state: State
    """The state of all rows after these steps."""


class SpeculativeBatch(NamedTuple):
    """A batch of p places in which each of m rows stands several times, once for each query."""

    problem: BatchProblem
    """[p] rows."""
    where: Tensor
    """[m] int64: the slots of the rows; place i belongs to row i modulo m."""
    slot: Tensor
    """[p] int64: the slot of each place."""
    row: Tensor
    """[p] int64: the row of each place."""
    offset: Tensor
    """[p] int64: how many steps after the row's next step."""
    last: Tensor
    """[m] int64: the largest offset of each row."""
    queries: list[tuple[Tensor, Tensor]]
    """Images [p, C, H, W] and logits [p, K] of each query that the step makes."""

    @classmethod
    def of(
        cls, problem: BatchProblem, model_access: ModelAccess, where: Tensor, places: int
    ) -> SpeculativeBatch:
        """A batch of `places` places for the slots `where` [m] int64."""
        place = torch.arange(places, device=where.device)
        row, offset = place % len(where), place // len(where)
        queries = list[tuple[Tensor, Tensor]]()
        repeated = problem.select(where[row], model_access)
        # An attack may write into its images and into the answers that it gets.
        repeated.on_query = lambda images, logits, _: queries.append(
            (images.clone(), logits.clone())
        )
        last = (places - 1 - place[: len(where)]) // len(where)
        return cls(repeated, where, where[row], row, offset, last, queries)


class SpeculativeQueries:
    """Decides how many steps to evaluate at once, and evaluates them."""

    def __init__(self, spec: CellSpec) -> None:
        self.attack, self.slots, self.unchanged = spec.attack, spec.slots, unchanged_rule(spec)
        # The cache asks the host which images are new; on a device a query is cheaper than that.
        self.on_cpu = spec.x.device.type == "cpu"
        access = spec.model_access
        self.model_access = QueryCache.wrap(access, spec.slots) if self.on_cpu else access
        fitting = min(MAX_BATCHES * spec.slots, MAX_PIXELS // spec.x[0].numel())
        self.max_rows = max(spec.slots, fitting)
        """Rows of one speculative batch at most."""
        self.batch: SpeculativeBatch | None = None
        self.changed_share = 1.0
        """Running share of steps that changed their row."""
        self.unrecorded = torch.zeros(2, dtype=torch.int64, device=spec.x.device)
        """[2] int64: the rows that changed and the steps made, on a device before it settles."""

    def batch_rows(self, occupied: int, slots: int) -> int:
        """Rows of a speculative batch for `occupied` of `slots` slots; 0: make a plain step."""
        if self.unchanged is None or not occupied:
            return 0
        expected = occupied / self.changed_share
        wanted = max(min(self.slots, expected), min(self.max_rows, EXPECTED_SHARE * expected))
        rows = max(slots, int(wanted) // BATCH_UNIT * BATCH_UNIT)
        return rows if rows >= MIN_GAIN * occupied else 0

    def record_step(self, before: State, after: State, active: Tensor) -> None:
        """Records the share of the rows `active` [n] bool that a plain step has changed."""
        if self.unchanged is not None:
            changed = active & ~self._unchanged(before, after)
            self._note(changed, active.sum())

    def _note(self, changed: Tensor, made: Tensor) -> None:
        """Records rows that changed [n] bool among so many steps; on a device when it settles."""
        if self.on_cpu:
            self.record(int(changed.sum()), int(made))
        else:
            self.unrecorded = self.unrecorded + torch.stack([changed.sum(), made])

    def record(self, changed: int, made: int) -> None:
        """Records that `changed` of `made` steps have changed their row."""
        share = DECAY * self.changed_share + (1 - DECAY) * changed / max(made, 1)
        self.changed_share = max(share, 1 / (MAX_BATCHES * self.slots))

    def advance(
        self,
        problem: BatchProblem,
        state: State,
        where: Tensor,
        places: int,
        *,
        searching: Tensor | None = None,
    ) -> SpeculativeStep:
        """Evaluates the next queries of the slots `where` [m] int64, `places` queries in all.

        Slots outside `searching` [n] bool, and those that have made their last step, make none.

        Raises:
            PluginError: the attack makes another number of queries than one in a step.
        """
        batch = self._batch(problem, where, places)
        steps_left = self.attack.steps - 1 - problem.t[where]
        if searching is not None:
            steps_left = torch.where(searching[where], steps_left, -1)
        t = problem.t[batch.slot] + batch.offset
        batch.problem.t = t.clamp_max(self.attack.steps - 1)
        before = map_state(lambda field: field[batch.slot], state)
        batch.queries.clear()
        versions = [part._version for part in tensors_of(before)]
        after = stepped(self.attack, batch.problem, before)
        if versions != [part._version for part in tensors_of(before)]:
            raise PluginError(
                f"{self.attack.name}.step wrote into the state that it was given, so that rows "
                "that it left unchanged are unknown; return new tensors."
            )
        images, logits = self._only_query(batch.queries)
        changed, success = ~self._unchanged(before, after), batch.problem.reaches_goal(logits)
        stop = torch.where(changed | success, batch.offset, places)
        last = torch.minimum(batch.last, steps_left).scatter_reduce(0, batch.row, stop, "amin")
        end = last.clamp_min(0) * len(where) + batch.row[: len(where)]
        moved = last >= 0
        self._note(changed[end] & moved, (last + 1).sum())

        def at_end(all_rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
            """A field [n, ...] of the state, with the rows `where` as after their last step."""
            if new is old:
                return all_rows
            rows = new[end]
            if searching is not None:
                rows = torch.where(per_row(moved, rows), rows, all_rows[where])
            return all_rows.index_copy(0, where, rows)

        state = map_state(at_end, state, before, after)
        return SpeculativeStep(last + 1, success[end], images[end], logits[end], state)

    def _unchanged(self, before: State, after: State) -> Tensor:
        """[n] bool: the rows that a step left unchanged, by the rule of the attack."""
        if self.unchanged is None:
            raise PluginError(f"{self.attack.name} does not declare which rows a step changes.")
        rows = len(points_of(after))
        what = f"{self.attack.name}.stays returned"
        return checked_column(self.unchanged(before, after), rows, what)

    def reset(self) -> None:
        """Forgets the batch layout, because the slots hold other rows now."""
        self.batch = None

    def _batch(self, problem: BatchProblem, where: Tensor, places: int) -> SpeculativeBatch:
        old = self.batch
        if old is None or len(old.row) != places or not self._same(old.where, where):
            self.batch = old = SpeculativeBatch.of(problem, self.model_access, where, places)
        return old

    def _same(self, old: Tensor, where: Tensor) -> bool:
        # On a device the host would wait for a comparison of values.
        return old is where or (self.on_cpu and torch.equal(old, where))

    def _only_query(self, queries: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if len(queries) != 1:
            raise PluginError(
                f"{self.attack.name} made {len(queries)} queries in a step; "
                "an attack that defines stays makes one query a step."
            )
        return queries[0]


def unchanged_rule(spec: CellSpec) -> UnchangedRule | None:
    """The attack's `stays`, or None where speculative queries would change the results.

    A budget may end between two queries, a random defense must not be queried more often, and only
    a first success ends a row at once.
    """
    attack: Any = spec.attack
    stays: UnchangedRule | None = getattr(attack, "stays", None)
    traits = Traits.of(attack)
    plain = spec.noise is None and spec.model_access.draws == 1 and spec.budget == Budget()
    first_success = traits.stop_rule is StopRule.FIRST_SUCCESS and not traits.minimises
    return stays if plain and first_success and spec.goal.kind != "nearest" else None
