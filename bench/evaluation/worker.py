"""Evaluates a selection: leases cells, runs their attacks, records outcomes, resumes.

The database holds the state of a run. Any number of workers may evaluate one database: each cell
and each training belongs to one lease, and the lease of a dead worker runs out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from bench.core import statistics
from bench.core.cells import FAST, Cell, CellState, Culprit, Failure
from bench.core.errors import PLUGIN_EXCEPTIONS, StorageError
from bench.core.isolation import Isolation
from bench.core.outcomes import Chunk, Verdict
from bench.engine.machine import this_machine
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.canaries import CanaryReport, mark_cell
from bench.evaluation.cascade_run import CascadeRun
from bench.evaluation.cell_player import GROUPS, CellPlayer
from bench.evaluation.cell_task import (
    CellTask,
    by_defense,
    failure_in,
    failure_or_end,
    names_of,
)
from bench.evaluation.certification import run_certifiers
from bench.evaluation.defense_cache import (
    POLL_SECONDS,
    RecordedDefenseCache,
    TrainedElsewhereError,
)
from bench.evaluation.diagnostics import run_diagnostics
from bench.evaluation.events import (
    CellFailed,
    CellFinished,
    CellsElsewhere,
    CellStarted,
    ChunkRecorded,
    DefenseFailed,
    LeaseLost,
    Listener,
    ignore_event,
    no_finite_logits,
    refused_candidates,
)
from bench.evaluation.follow_up_plan import follow_up_pairs
from bench.evaluation.plan import PlannedPair, Selection
from bench.evaluation.shared_fit import recorded_fit
from bench.evaluation.stopping import StopRequest
from bench.evaluation.submission_states import SubmissionStates
from bench.plugin import Defense, ThreatModel
from bench.referee.referee import clean_outcomes
from bench.registry.registry import Registry
from bench.results.fast_items import items_of_cell
from bench.sandbox.deadline import CELL_DEADLINE
from bench.store import CellRow, Lease, LeaseLostError, PlannedCell, Store, process_id
from bench.store.waiting import Reminder


@dataclass
class MatrixWorker:
    """Evaluates the cells of a selection in one process, defense by defense."""

    registry: Registry
    store: Store
    selection: Selection
    settings: RunSettings
    player: CellPlayer = field(default_factory=CellPlayer)
    certifiers: str = "quick"
    """Which certifiers run: `none`, `quick` or `all`."""
    listener: Listener = ignore_event
    owner: str = field(default_factory=process_id)
    run_began: float | None = None
    """Start of the run by the store's clock: a cell that failed since is not tried again."""
    stop: StopRequest = field(default_factory=StopRequest)
    canaries: CanaryReport | None = None
    """How the canaries came out for this code on this machine; None where none were played."""

    def __post_init__(self) -> None:
        self.run_began = self.store.clock() if self.run_began is None else self.run_began
        self.player = replace(self.player, listener=self.listener)
        self.submission_states = SubmissionStates(self.registry, self.store)
        self.defenses = RecordedDefenseCache(
            registry=self.registry, store=self.store, selection=self.selection,
            settings=self.settings, owner=self.owner, listener=self.listener,
        )  # fmt: skip
        self.interrupted_cascades: list[PlannedPair] = []
        """Pairs of cascades whose next cell another worker evaluates."""
        self.pairs: dict[tuple[str, str, str], PlannedPair] = {}
        """Every pair of this run by threat model, defense and attack."""
        self.postponed: list[PlannedPair] = []
        """Pairs that need a defense that another worker trains."""

    def run(self) -> list[Cell]:
        """Evaluate the selection to its end; returns its cells in order."""
        try:
            cells = self._evaluate_selection()
        except (KeyboardInterrupt, StorageError):
            with suppress(StorageError), self.store.without_waiting():
                self.submission_states.halt()
            raise
        self.submission_states.end(cells)
        return cells

    def _evaluate_selection(self) -> list[Cell]:
        pairs = plan.plan_pairs(self.registry, self.selection)
        self.store.record_cards(self.registry.cards(self.defenses.digests()))
        cells = self._evaluate_pairs(pairs)
        seen = {names_of(pair) for pair in pairs}
        # Follow-up attacks may cause further warnings, which call for further attacks.
        while later := [p for p in self._follow_up_pairs() if names_of(p) not in seen]:
            seen |= {names_of(pair) for pair in later}
            cells += self._evaluate_pairs(later)
        return cells

    def _follow_up_pairs(self) -> list[PlannedPair]:
        return follow_up_pairs(self.registry, self.store, self.selection)

    def _evaluate_pairs(self, pairs: list[PlannedPair]) -> list[Cell]:
        """Evaluate pairs until none of their cells is open or held by another worker."""
        cells: list[Cell] = []
        self.pairs |= {names_of(pair): pair for pair in pairs}
        while pairs:
            for defense, group in by_defense(pairs):
                cells += self._evaluate_defense(defense, group)
            self.defenses.wait_for_training = True
            if not self.postponed:
                self._wait_for_others(cells)
            pairs = [*self.postponed, *self.interrupted_cascades]
            self.postponed, self.interrupted_cascades = [], []
        return cells

    def _evaluate_defense(self, defense: Defense, pairs: list[PlannedPair]) -> list[Cell]:
        """All cells of one defense, which is built once and then dropped."""
        cells = []
        for threat in dict.fromkeys(pair.threat for pair in pairs):
            part = [pair for pair in pairs if pair.threat is threat]
            try:
                cells += self._evaluate_threat_model(threat, defense, part)
            except TrainedElsewhereError:
                self.postponed += part
        self.defenses.built.clear()
        return cells

    def _evaluate_threat_model(
        self, threat: ThreatModel, defense: Defense, pairs: list[PlannedPair]
    ) -> list[Cell]:
        """Plan and evaluate the cells of one defense under one threat model."""
        self.stop.raise_if_requested()
        try:
            built = self.defenses.defense(defense, threat)
        except TrainedElsewhereError:
            raise
        except PLUGIN_EXCEPTIONS as error:
            why = failure_or_end(error)
            return self._fail_all(self.defenses.unbuilt_cells(pairs), pairs, why)
        clean = self._evaluate_clean_cell(built)
        failure = failure_in(clean)
        if failure is not None:
            return self._fail_all([self._task(p, built).cell for p in pairs], pairs, failure)
        if clean.state is CellState.DONE:
            run_diagnostics(self.store, self.registry, built, self.listener)
        run_certifiers(self.store, self.registry, built, threat, self.certifiers, self.listener)
        if self.selection.mode != "full":
            return self._evaluate_cascade(pairs, built)
        tasks = [self._task(pair, built) for pair in pairs]
        cells = [task.cell for task in tasks]
        self._plan(cells, pairs)
        for task in tasks:
            if not task.pair.reason:
                self._evaluate_cell(task)
        return cells

    def _task(self, pair: PlannedPair, built: BuiltDefense) -> CellTask:
        """The cell of a pair; it fails alone where its surrogate model cannot be built."""
        mode = self.selection.mode
        try:
            surrogate = self.defenses.surrogate(pair)
        except TrainedElsewhereError:
            raise
        except PLUGIN_EXCEPTIONS as error:
            why = failure_or_end(error)
            cell = built.cell(pair.threat, pair.attack, mode, None)
            cell = replace(cell, source_digest=f"unbuilt {pair.defense.surrogate}")
            return CellTask(cell, pair, built, failure=why)
        cell = built.cell(pair.threat, pair.attack, mode, surrogate)
        return CellTask(cell, pair, built, surrogate)

    def _plan(self, cells: list[Cell], pairs: list[PlannedPair]) -> None:
        planned = [self._planned(cell, pair) for cell, pair in zip(cells, pairs, strict=True)]
        self.store.plan(planned, since=self.run_began)

    def _planned(self, cell: Cell, pair: PlannedPair) -> PlannedCell:
        state = CellState.NOT_APPLICABLE if pair.reason else CellState.MISSING
        return PlannedCell(cell, state, pair.reason, pair.required, self._isolation(pair))

    def _evaluate_cascade(self, pairs: list[PlannedPair], built: BuiltDefense) -> list[Cell]:
        """Attack after attack, each on the examples that the earlier ones leave it."""
        run = CascadeRun(
            self.store, lambda pair: self._task(pair, built), self._plan, self._evaluate_cell
        )
        if self.selection.mode == FAST:
            run.fast(pairs, built)
        else:
            run.rank(pairs)
        if run.interrupted:
            self.interrupted_cascades += pairs
        return run.cells

    def _row(self, cell: Cell) -> CellRow:
        (row,) = self.store.cells(key=cell.key)
        return row

    def _isolation(self, pair: PlannedPair) -> str:
        """Isolation of a cell: the less isolated of its defense and its attack."""
        named = (("defense", pair.defense.name), ("attack", pair.attack.name))
        found = [self.registry.find(kind, name).isolation for kind, name in named]
        return max(found, key=list(Isolation).index).value

    def _fail_all(
        self, cells: list[Cell], pairs: list[PlannedPair], failure: Failure
    ) -> list[Cell]:
        """Plan the cells of one defense and record for each open one why it has no figure."""
        self._plan(cells, pairs)
        failed = [self._fail_open_cell(cell, failure) for cell in cells]
        if any(failed):
            self.listener(DefenseFailed(pairs[0].defense.name, failure.reason))
        return cells

    def _fail_open_cell(self, cell: Cell, failure: Failure) -> bool:
        """Record a failure without evaluating the cell; whether it was open."""
        lease = self.store.lease(cell.key, self.owner)
        if lease is None:
            return False
        self.submission_states.begin(cell)
        return self._record_failure(cell, lease, failure)

    def _fail_and_report(self, cell: Cell, failure: Failure) -> None:
        if self._fail_open_cell(cell, failure):
            self.listener(CellFailed(cell, failure.reason))

    def _evaluate_clean_cell(self, built: BuiltDefense) -> CellRow:
        """The clean pass, once per set of examples; without it no attack can be judged."""
        cell = built.clean_cell()
        isolation = self.registry.find("defense", built.defense.name).isolation.value
        planned = PlannedCell(cell, required=True, tier=isolation)
        self.store.plan([planned], since=self.run_began)
        lease = self.store.lease(cell.key, self.owner)
        if lease is not None and self._finish(
            cell, lease, lambda: self._record_clean(built, lease)
        ):
            without_answer = int((built.clean.label < 0).sum())
            if without_answer:
                name = built.defense.name
                self.listener(no_finite_logits(name, without_answer, len(built.y)))
        return self._row(cell)

    def _record_clean(self, built: BuiltDefense, lease: Lease) -> None:
        clean = built.clean_pass(self.store.heartbeats(lease))
        if len(self.store.finished_items(lease.key)) == 0:
            machine = this_machine(self.settings.device)
            self.store.record(lease, Chunk(clean_outcomes(clean, built.y), 0.0, machine=machine))

    def _evaluate_cell(self, task: CellTask) -> None:
        """Evaluate one cell if it is open."""
        self.stop.raise_if_requested()
        cell = task.cell
        if task.failure is not None:
            self._fail_and_report(cell, task.failure)
            return
        lease = self.store.lease(cell.key, self.owner)
        if lease is None:
            return
        mark_cell(self.store, cell, self.canaries)
        if self._finish(cell, lease, lambda: self._record_chunks(task, lease)):
            self._report_finished(cell)
        elif (failure := failure_in(self._row(cell))) is not None:
            self.listener(CellFailed(cell, failure.reason))

    def _finish(self, cell: Cell, lease: Lease, work: Callable[[], None]) -> bool:
        """Do the work of a leased cell and mark it done; whether that succeeded."""
        try:
            with CELL_DEADLINE.cell():
                work()
            self.store.finish(lease)
            return True
        except KeyboardInterrupt:
            self._give_back(lease)
            raise
        except BaseException as error:  # a plugin may raise even SystemExit or GeneratorExit
            try:
                failure = failure_or_end(error)
            except StorageError:
                self._give_back(lease)
                raise
            if isinstance(error, LeaseLostError) and failure.culprit is not Culprit.PLUGIN:
                self.listener(LeaseLost(cell, str(error)))
            else:
                self._record_failure(cell, lease, failure)
        return False

    def _give_back(self, lease: Lease) -> None:
        """Release a lease if the database answers at once; else it ends with this process."""
        with suppress(LeaseLostError, StorageError), self.store.without_waiting():
            self.store.release(lease)

    def _record_failure(self, cell: Cell, lease: Lease, failure: Failure) -> bool:
        """Record why a cell has no figure; False where another worker has taken it over."""
        try:
            self.store.fail(lease, failure)
        except LeaseLostError as error:
            self.listener(LeaseLost(cell, str(error)))
            return False
        return True

    def _record_chunks(self, task: CellTask, lease: Lease) -> None:
        """Evaluate the unfinished items of a cell and record them, chunk by chunk."""
        cell, device = task.cell, self.settings.device
        self.submission_states.begin(cell)
        finished = self.store.finished_items(cell.key).tolist()
        left = cell.items - len(finished)
        self.listener(CellStarted(cell, len(finished)))
        whole = task.defense.item_count(task.pair.threat, task.pair.attack)
        partial = cell.before or cell.mode == FAST
        included = items_of_cell(self.store, cell, whole) if partial else None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            chunks = self.player.chunks(
                task.pair, task.defense, task.surrogate,
                finished=finished, included=included, heartbeat=self.store.heartbeats(lease),
                group=GROUPS[min(lease.attempt, len(GROUPS)) - 1],
                fitted=recorded_fit(self.store, lease, task),
            )  # fmt: skip
            for chunk in chunks:
                self.store.record(lease, chunk)
                self.listener(ChunkRecorded(cell, len(chunk.outcomes.item)))
                left -= len(chunk.outcomes.item)
                if left:
                    self.stop.raise_if_requested()

    def _report_finished(self, cell: Cell) -> None:
        outcomes = self.store.outcomes(cell.key)
        refused = outcomes.verdict > Verdict.BROKEN
        if refused.any():
            largest = float(outcomes.distance[refused].max())
            self.listener(refused_candidates(cell, int(refused.sum()), largest))
        unbroken = int((outcomes.verdict != Verdict.BROKEN).sum())
        robust = statistics.count_interval(unbroken, cell.items)
        self.registry.notify_cell_judged(cell, robust)
        self.listener(CellFinished(cell, robust))

    def _wait_for_others(self, cells: list[Cell]) -> None:
        """Wait for cells that other workers hold; evaluate those that they leave open."""
        mine = {cell.key: cell for cell in cells}
        reminder = Reminder()
        while True:
            rows = [row for row in self.store.cells() if row.key in mine]
            running = [row for row in rows if row.state is CellState.RUNNING]
            missing = [row for row in rows if row.state is CellState.MISSING]
            if not running and not missing:
                return
            self.stop.raise_if_requested()
            if running and reminder.due():
                self._report_holder(running, reminder.since)
            # By the own cell: another run may have planned it under another name of the rules.
            self._take_over([mine[row.key] for row in [*running, *missing]])
            time.sleep(POLL_SECONDS)

    def _report_holder(self, running: list[CellRow], since: str) -> None:
        """Tell which process holds the cell whose last heartbeat is the oldest."""
        oldest = min(running, key=lambda row: row.updated)
        holder = self.store.holder_of(oldest.key)
        if holder:
            self.listener(CellsElsewhere(oldest.cell, len(running) - 1, since, holder))

    def _take_over(self, cells: list[Cell]) -> None:
        for cell in cells:
            pair = self.pairs[cell.threat, cell.defense, cell.attack]
            try:
                task = self._task(pair, self.defenses.defense(pair.defense, pair.threat))
            except PLUGIN_EXCEPTIONS as error:
                self._fail_and_report(cell, failure_or_end(error))
            else:
                self._evaluate_cell(task.as_planned(cell))
