"""Plays what is open: trains what must be trained, leases cells, records, resumes.

The database is the source of truth. Any number of workers may run this on one database: each cell
and each training belongs to one lease, and whoever dies gives its lease back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from bench.core import statistics
from bench.core.cells import Cell, CellState, Culprit, Failure
from bench.core.errors import PLUGIN_EXCEPTIONS
from bench.core.isolation import Isolation
from bench.core.outcomes import Chunk, Verdict
from bench.engine.precision_audit import PrecisionAudit
from bench.engine.runner import run_attack
from bench.evaluation import plan
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.evaluation.certification import run_certifiers
from bench.evaluation.defense_cache import DefenseCache, TrainedElsewhere
from bench.evaluation.diagnostics import run_diagnostics
from bench.evaluation.events import Event, Listener, bad_answers, fallen, refused_offers
from bench.evaluation.failures import failure_of
from bench.evaluation.plan import PlannedPair, Selection
from bench.evaluation.submission_states import SubmissionStates
from bench.plugin import Defense, ThreatModel
from bench.referee.referee import KEPT_IMAGES, clean_outcomes, judge
from bench.registry.registry import Registry
from bench.store import CellRow, Lease, LeaseLostError, PlannedCell, Store, process_id

POLL = 0.2  # seconds between looks at work that somebody else holds


class CellTask(NamedTuple):
    """One cell, and who meets in it."""

    cell: Cell
    pair: PlannedPair
    arena: BuiltDefense
    source: BuiltDefense | None = None
    """The surrogate that a transfer attack asks."""
    failure: Failure | None = None
    """Why it cannot be played."""


@dataclass
class Worker:
    """One process's way through the matrix."""

    registry: Registry
    store: Store
    selection: Selection
    setting: RunSettings
    keep: str = "sample"
    """Which images are kept: `none`, `sample` or `all`."""
    certifiers: str = "quick"
    """Which certifiers are asked: `none`, `quick` or `all`."""
    order: Callable[[int], list[int] | None] = lambda count: None
    """The order in which a cell's items are taken up; verdicts do not depend on it."""
    listener: Listener = lambda event: None
    owner: str = field(default_factory=process_id)
    halted: list[PlannedPair] = field(default_factory=list)
    """Pairs of the cascades whose next cell waits for one in other hands."""
    later: list[PlannedPair] = field(default_factory=list)
    """Pairs of the boards that need a training in other hands."""
    began: float | None = None
    """When the run began, by the store's clock: what fails from then on has failed for all."""

    def __post_init__(self) -> None:
        self.began = self.store.clock() if self.began is None else self.began
        self.entrants = SubmissionStates(self.registry, self.store)
        self.builder = DefenseCache(
            self.registry, self.store, self.selection, self.setting, self.owner, self.listener
        )

    def run(self) -> list[Cell]:
        """Play the selection to its end; the cells it holds, in order."""
        try:
            cells = self._all()
        except KeyboardInterrupt:
            self.entrants.halt()
            raise
        self.entrants.end(cells)
        return cells

    def _all(self) -> list[Cell]:
        pairs = plan.plan_pairs(self.registry, self.selection)
        self.store.declare(self.registry.cards(self.builder.digests()))
        cells: list[Cell] = []
        while pairs:
            for defense, group in _by_defense(pairs):
                cells += self._defense(defense, group)
            self.builder.patient = True
            if not self.later:
                self._wait_for_others(cells)
            pairs, self.later, self.halted = [*self.later, *self.halted], [], []
        return cells

    def _defense(self, defense: Defense, pairs: list[PlannedPair]) -> list[Cell]:
        """All cells of one defense, so that it is built once."""
        planned = []
        for threat in dict.fromkeys(pair.threat for pair in pairs):
            part = [pair for pair in pairs if pair.threat is threat]
            try:
                planned += self._board(threat, defense, part)
            except TrainedElsewhere:
                self.later += part
        self.builder.arenas.clear()
        return planned

    def _board(self, threat: ThreatModel, defense: Defense, pairs: list[PlannedPair]) -> list[Cell]:
        """Plan and play the cells of one defense on one board."""
        try:
            arena = self.builder.arena(defense, threat)
        except TrainedElsewhere:
            raise
        except PLUGIN_EXCEPTIONS as error:
            return self._closed(self.builder.unbuilt(pairs), pairs, failure_of(error))
        clean = self._clean(arena)
        failure = _failure(clean)
        if failure is not None:
            return self._closed([self._seat(p, arena).cell for p in pairs], pairs, failure)
        if clean.state is CellState.DONE:
            run_diagnostics(self.store, self.registry, arena, self.listener)
        run_certifiers(self.store, self.registry, arena, threat, self.certifiers, self.listener)
        if self.selection.mode == "rank":
            return self._cascade(pairs, arena)
        seats = [self._seat(pair, arena) for pair in pairs]
        cells = [seat.cell for seat in seats]
        self._plan(cells, pairs)
        for seat in seats:
            if not seat.pair.reason:
                self._cell(seat)
        return cells

    def _seat(self, pair: PlannedPair, arena: BuiltDefense) -> CellTask:
        """The cell of a pair; where its source cannot be built, it alone has failed."""
        mode = self.selection.mode
        try:
            source = self.builder.source(pair)
        except TrainedElsewhere:
            raise
        except PLUGIN_EXCEPTIONS as error:
            cell = arena.cell(pair.threat, pair.attack, mode, None)
            cell = replace(cell, source_digest=f"unbuilt {pair.defense.surrogate}")
            return CellTask(cell, pair, arena, failure=failure_of(error))
        return CellTask(arena.cell(pair.threat, pair.attack, mode, source), pair, arena, source)

    def _plan(self, cells: list[Cell], pairs: list[PlannedPair]) -> None:
        states = [CellState.NOT_APPLICABLE if p.reason else CellState.MISSING for p in pairs]
        planned = [
            PlannedCell(cell, state, pair.reason, pair.required, self._tier(pair))
            for cell, state, pair in zip(cells, states, pairs, strict=True)
        ]
        self.store.plan(planned, since=self.began)

    def _cascade(self, pairs: list[PlannedPair], arena: BuiltDefense) -> list[Cell]:
        """Attack after attack, each against what those before it left standing."""
        cells: list[Cell] = []
        before, left = "", None
        for pair in pairs:
            seat = self._seat(pair, arena)
            cell = seat.cell
            if not pair.reason:
                cell = replace(cell, before=before, items=cell.items if left is None else left)
            cells.append(cell)
            self._plan([cell], [pair])
            if pair.reason:
                continue
            self._cell(seat._replace(cell=cell))
            state = self._row(cell).state
            if state in (CellState.RUNNING, CellState.MISSING):
                self.halted += pairs
                break
            if state is CellState.DONE:
                before, left = cell.key, len(self.store.outcomes(cell.key).survivors())
        return cells

    def _row(self, cell: Cell) -> CellRow:
        rows = self.store.cells(examples=cell.examples, mode=cell.mode)
        return next(row for row in rows if row.key == cell.key)

    def _tier(self, pair: PlannedPair) -> str:
        """Isolation of a cell: the less isolated of its defense and its attack."""
        named = (("defense", pair.defense.name), ("attack", pair.attack.name))
        found = [self.registry.find(kind, name).isolation for kind, name in named]
        return max(found, key=list(Isolation).index).value

    def _closed(self, cells: list[Cell], pairs: list[PlannedPair], failure: Failure) -> list[Cell]:
        """Cells of one defense, none of which can be played: they fail with the reason."""
        self._plan(cells, pairs)
        closed = [self._close(cell, failure) for cell in cells]
        if any(closed):
            self.listener(Event("failed", f"{pairs[0].defense.name}: {failure.reason}"))
        return cells

    def _close(self, cell: Cell, failure: Failure) -> bool:
        """Whether the cell was open and has failed now, nothing played."""
        lease = self.store.lease(cell.key, self.owner)
        if lease is None:
            return False
        self.entrants.begin(cell)
        return self._fail(cell, lease, failure)

    def _close_aloud(self, cell: Cell, failure: Failure) -> None:
        if self._close(cell, failure):
            self.listener(Event("failed", failure.reason, cell))

    def _clean(self, arena: BuiltDefense) -> CellRow:
        """The clean pass, once for each set of examples; without it no attack can be judged."""
        cell = arena.clean_cell()
        tier = self.registry.find("defense", arena.defense.name).isolation.value
        self.store.plan([PlannedCell(cell, required=True, tier=tier)], since=self.began)
        lease = self.store.lease(cell.key, self.owner)
        if lease is not None and self._held(cell, lease, lambda: self._cleaned(arena, lease)):
            mute = int((arena.clean.label < 0).sum())
            if mute:
                self.listener(Event("odd", bad_answers(arena.defense.name, mute, len(arena.y))))
        return self._row(cell)

    def _cleaned(self, arena: BuiltDefense, lease: Lease) -> None:
        arena.know(self.store.beats(lease))
        if len(self.store.finished_items(lease.key)) == 0:
            outcomes = clean_outcomes(arena.clean, arena.y)
            self.store.record(lease, Chunk(outcomes, 0.0))

    def _cell(self, seat: CellTask) -> None:
        """Play one cell, if it is open."""
        cell = seat.cell
        if seat.failure is not None:
            self._close_aloud(cell, seat.failure)
            return
        lease = self.store.lease(cell.key, self.owner)
        if lease is None:
            return
        if self._held(cell, lease, lambda: self._played(seat, lease)):
            self._judged(cell)
        elif (failure := _failure(self._row(cell))) is not None:
            self.listener(Event("failed", failure.reason, cell))

    def _held(self, cell: Cell, lease: Lease, work: Callable[[], None]) -> bool:
        """Do the work of a cell under its lease: whether it is finished now."""
        try:
            work()
            self.store.finish(lease)
        except KeyboardInterrupt:
            with suppress(LeaseLostError):
                self.store.release(lease)
            raise
        except BaseException as error:  # a plugin may raise even what ends programs
            failure = failure_of(error)
            if isinstance(error, LeaseLostError) and failure.culprit is not Culprit.PLUGIN:
                self.listener(Event("wait", str(error), cell))
            else:
                self._fail(cell, lease, failure)
        else:
            return True
        return False

    def _fail(self, cell: Cell, lease: Lease, failure: Failure) -> bool:
        """Whether the cell is closed without a figure; else somebody else has it."""
        try:
            self.store.fail(lease, failure)
        except LeaseLostError as error:
            self.listener(Event("wait", str(error), cell))
            return False
        return True

    def _played(self, seat: CellTask, lease: Lease) -> None:
        """Every item of a cell that is not there yet, chunk by chunk."""
        cell = seat.cell
        self.entrants.begin(cell)
        finished = self.store.finished_items(cell.key).tolist()
        self.listener(Event("cell", cell=cell, items=len(finished)))
        met = self.store.outcomes(cell.before).survivors() if cell.before else None
        with torch.random.fork_rng(_cuda(self.setting.device)):
            beat = self.store.beats(lease)
            for chunk in self.chunks(seat.pair, seat.arena, seat.source, finished, met, beat):
                self.store.record(lease, chunk)
                self.listener(Event("chunk", cell=cell, items=len(chunk.outcomes.item)))

    def chunks(
        self, pair: PlannedPair, arena: BuiltDefense, source: BuiltDefense | None,
        finished: Sequence[int] = (),
        met: Sequence[int] | None = None, beat: Callable[[], None] = lambda: None,
    ) -> Iterator[Chunk]:  # fmt: skip
        """The heart: the engine's attempts through the referee's hands.

        `met` are the items of a cell of a cascade (None: all); the others are spared. `beat` is
        called between the groups of a clean pass and every few steps.
        """
        for built in (arena, source):
            if built is not None:
                built.know(beat)
        threat, attack = pair.threat, pair.attack
        referee, answers = arena.referee(threat, attack), arena.answers(threat)
        game = replace(arena.game(threat, attack, source), heartbeat=beat)
        spared = set() if met is None else set(range(len(game.x))) - set(met)
        exact = None
        if arena.form(threat, attack).low_precision:
            exact = replace(arena.game(threat, attack, source, exact=True), heartbeat=beat)
        attempts = run_attack(
            game, referee.confirm, finished=[*finished, *spared], order=self.order(len(game.x)),
            exact=exact, on_audit=lambda audit: self._heard(pair, audit),
        )  # fmt: skip
        sample = () if self.keep == "none" else range(KEPT_IMAGES)
        judged = judge(attempts, referee, answers, keep=sample, keep_all=self.keep == "all")
        # A declared-random defense plays whole groups: the spared among them are not recorded.
        return (chunk.without(spared) for chunk in judged) if spared else judged

    def _heard(self, pair: PlannedPair, audit: PrecisionAudit) -> None:
        if audit.broken:
            self.listener(Event("odd", fallen(pair, audit)))

    def _judged(self, cell: Cell) -> None:
        outcomes = self.store.outcomes(cell.key)
        outside = outcomes.verdict > Verdict.BROKEN
        if outside.any():
            worst = float(outcomes.distance[outside].max())
            self.listener(Event("odd", refused_offers(cell, int(outside.sum()), worst)))
        held = int((outcomes.verdict != Verdict.BROKEN).sum())
        robust = statistics.count_interval(held, cell.items)
        self.registry.notify_cell_judged(cell, robust)
        self.listener(Event("done", f"{robust.k}/{robust.n}", cell))

    def _wait_for_others(self, cells: list[Cell]) -> None:
        """Cells in other hands: wait until they are closed, or take over what was left open."""
        mine = {cell.key for cell in cells}
        while True:
            rows = [row for row in self.store.cells() if row.key in mine]
            running = [row for row in rows if row.state is CellState.RUNNING]
            missing = [row for row in rows if row.state is CellState.MISSING]
            if not running and not missing:
                return
            self._take_over([row.cell for row in [*running, *missing]])
            time.sleep(POLL)

    def _take_over(self, cells: list[Cell]) -> None:
        pairs = {
            (pair.threat.name, pair.defense.name, pair.attack.name): pair
            for pair in plan.plan_pairs(self.registry, self.selection)
        }
        for cell in cells:
            pair = pairs[cell.threat, cell.defense, cell.attack]
            try:
                seat = self._seat(pair, self.builder.arena(pair.defense, pair.threat))
            except PLUGIN_EXCEPTIONS as error:
                self._close_aloud(cell, failure_of(error))
            else:
                self._cell(_again(cell, seat))


def _again(cell: Cell, seat: CellTask) -> CellTask:
    """The seat of a cell that was planned before; it fails where its key would be another now."""
    now = replace(seat.cell, before=cell.before, items=cell.items)
    if seat.failure is None and now.key != cell.key:
        changed = (
            f"{cell.defense} or its surrogate has changed since this cell was planned; run again."
        )
        return CellTask(cell, seat.pair, seat.arena, failure=Failure(Culprit.USER, changed))
    return seat._replace(cell=cell)


def _failure(row: CellRow) -> Failure | None:
    """Why a cell has failed; None where it has not."""
    if row.state is not CellState.FAILED or row.culprit is None:
        return None
    return Failure(row.culprit, row.reason)


def _by_defense(pairs: list[PlannedPair]) -> Iterator[tuple[Defense, list[PlannedPair]]]:
    for name in dict.fromkeys(pair.defense.name for pair in pairs):
        group = [pair for pair in pairs if pair.defense.name == name]
        yield group[0].defense, group


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
