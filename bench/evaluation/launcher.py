"""Runs a selection as requested on the command line, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import torch

from bench.core.cards import AttackCard
from bench.core.cells import EXAMPLE_ORDERS, MODES, CellState, Numeric
from bench.core.errors import INTERRUPTED, BenchError, UnavailableError
from bench.core.variant_names import base_name
from bench.engine.machine import this_machine
from bench.evaluation import cascade, plan
from bench.evaluation.attack_batches import AttackCheck, record_batch_findings
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.canaries import CanaryReport, recorded_canaries
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.events import Event, Listener, PluginProblem, RunNotice
from bench.evaluation.follow_up_plan import follow_up_pairs
from bench.evaluation.malloc import raise_thresholds
from bench.evaluation.plan import ALL, PlannedPair, Selection
from bench.evaluation.progress import CostEstimates, ProgressDisplay
from bench.evaluation.run_plan import planned_cells
from bench.evaluation.stopping import (
    Level,
    StopRequest,
    signals_blocked,
    stopped_by_parent,
    stopped_by_signals,
)
from bench.evaluation.worker import MatrixWorker
from bench.evaluation.worker_count import default_workers
from bench.plugin import Traits
from bench.registry.registry import Registry
from bench.results.current_cells import attack_digests, current_cells
from bench.results.row_versions import is_done
from bench.sandbox.adapter import isolate_submissions
from bench.store import CellRow, Store
from bench.store.waiting import WAIT_SECONDS, Waiting
from bench.threats.threat_model import ThreatModel

LIVENESS_SECONDS = 0.5  # between two checks that a worker process is alive
END_SECONDS = 5.0  # in which a worker that is to stop at once releases its lease


@dataclass(frozen=True)
class MatrixRun:
    """A run: which cells, on which device, into which database."""

    selection: Selection
    url: str | None
    device: str = "auto"
    batch: int | None = None
    workers: int | None = 1
    """Worker processes; None: as many as devices, or cores, memory and open cells, allow."""
    keep_images: str = "sample"
    allow_unsandboxed: bool = False
    quiet: bool = False
    numeric: str = Numeric.FLOAT32
    certify: str = "quick"
    attack_check: AttackCheck | None = None
    """Examines attacks that are not built in before their first cell; None examines none."""

    def __post_init__(self) -> None:
        require_choice("--mode", self.selection.mode, list(MODES))
        require_choice("--order", self.selection.order, list(EXAMPLE_ORDERS))
        require_choice("--numeric", self.numeric, [str(kind) for kind in Numeric])
        require_choice("--certify", self.certify, ["none", "quick", "all"])
        require_choice("--keep-images", self.keep_images, ["none", "sample", "all"])

    def threats(self) -> list[ThreatModel]:
        """The threat models of the selection to report, in display order.

        Those that are there only as evidence for others are left out.
        """
        registry = load_registry(self.allow_unsandboxed, self.selection, ("threat",))
        chosen = plan.selected_threats(registry, self.selection)
        evidence = {name for threat in chosen for name in threat.protocol.evidence}
        named = plan.named_threats(registry, self.selection)
        whole = ALL in self.selection.threats
        return [t for t in chosen if whole or t.name not in evidence or t.name in named]

    def plan(self) -> list[dict[str, Any]]:
        """Every pair of the selection with state and expected cost of its cell; runs nothing."""
        registry = load_registry(self.allow_unsandboxed, self.selection)
        with Store.open(self.url) as store:
            pairs = self._pairs(registry, store)
            states = {name: str(row.state) for name, row in self._cells(store, registry, pairs)}
            costs = CostEstimates(store.cells())
        return planned_cells(registry, self.selection, pairs, states, costs)

    def run(self) -> int:
        """Evaluate the open cells; returns the number of failed cells."""
        stop = StopRequest()
        with stopped_by_signals(stop, quiet=self.quiet):
            return self._run(stop)

    def _run(self, stop: StopRequest) -> int:
        registry = load_registry(self.allow_unsandboxed, self.selection)
        pairs = plan.plan_pairs(registry, self.selection)
        with Store.open(self.url) as store:
            costs = CostEstimates(store.cells())
            names = {(p.threat.name, p.attack.name, p.defense.name): p for p in pairs}
            finished = {n for n, row in self._cells(store, registry, pairs) if is_done(row)}
            open_cells = [n for n, pair in names.items() if not pair.reason and n not in finished]
            with ProgressDisplay(open_cells, costs, quiet=self.quiet) as show:
                _show_problems(registry, show)
                self._examine_attacks(registry, store, pairs, show)
                store.waiting = waiting_of_run(show, stop)
                store.remove_leftovers()
                workers = self._worker_count(len(open_cells), show)
                if workers == 1:
                    make_worker(self, store, registry, show, stop=stop).run()
                else:
                    canaries_of_run(self, store, registry, show)  # once for all workers
                    self._run_processes(workers, show, store.clock(), stop)
            pairs = self._pairs(registry, store)
            rows = [row for _, row in self._cells(store, registry, pairs)]
            return sum(row.state is CellState.FAILED for row in rows)

    def _examine_attacks(
        self, registry: Registry, store: Store, pairs: Sequence[PlannedPair], show: Listener
    ) -> None:
        """Record whether the attacks of the run depend on their batch, once for all workers."""
        if self.attack_check is not None:
            set_deterministic()
            machine = this_machine(chosen_device(self.device)).sentence
            record_batch_findings(store, registry, pairs, self.attack_check, machine, show)

    def _pairs(self, registry: Registry, store: Store) -> list[PlannedPair]:
        """The pairs of the selection, and the follow-up attacks that recorded warnings call for."""
        pairs = plan.plan_pairs(registry, self.selection)
        later = follow_up_pairs(registry, store, self.selection)
        known = {(p.threat.name, p.attack.name, p.defense.name): p for p in [*later, *pairs]}
        return list(known.values())

    def _cells(
        self, store: Store, registry: Registry, pairs: Sequence[PlannedPair]
    ) -> Iterator[tuple[tuple[str, str, str], CellRow]]:
        """Yield (threat, attack, defense) and database row of each pair's current cell."""
        counts: dict[tuple[str, str, str], int] = {}
        names = {pair.threat.id: pair.threat.name for pair in pairs}
        for pair in pairs:
            dataset = registry.find("dataset", pair.threat.dataset).value
            name = (pair.threat.name, pair.attack.name, pair.defense.name)
            counts[name] = plan.example_count(pair.threat, pair.defense, self.selection, dataset)
        digests = attack_digests(c for c in registry.cards() if isinstance(c, AttackCard))
        wanted = (self.selection.seed, self.selection.mode, self.numeric)
        found: dict[tuple[str, str], list[CellRow]] = {}
        for row in current_cells(store, digests):
            # A cell may have been planned under another name of the same rules.
            threat = names.get(row.cell.threat_id, "")
            name = (threat, row.cell.attack, row.cell.defense)
            same = (row.cell.seed, row.cell.mode, row.cell.numeric) == wanted
            examples = store.examples(row.cell.examples)
            here = (counts.get(name), self.selection.order)
            if same and (examples.n, examples.order) == here:
                found.setdefault((threat, row.cell.defense), []).append(row)
        limited = {n for n, a in registry.attacks.items() if Traits.of(a.value).examples}
        for (threat, defense), rows in found.items():
            attacks = [a for t, a, d in counts if (t, d) == (threat, defense)]
            # A cell may also have a failed row, from when its surrogate could not be built.
            by_key = {(r.cell.attack, r.cell.before): r for r in sorted(rows, key=is_done)}
            latest = list(by_key.values())
            if self.selection.mode == "rank":
                latest = list(cascade.cascade_as_run(latest, attacks, limited).values())
            yield from (((threat, row.cell.attack, defense), row) for row in latest)

    def _worker_count(self, open_cells: int, show: Listener) -> int:
        """The number of workers; where none was asked for, the listener gets it with its reason."""
        if self.workers is not None:
            return self.workers
        chosen = default_workers(self.device, open_cells)
        if chosen.workers > 1:
            show(RunNotice(f"{chosen.workers} workers: {chosen.reason} (--workers overrules)."))
        return chosen.workers

    def _run_processes(self, workers: int, show: Listener, began: float, stop: StopRequest) -> None:
        """Run several workers on one database; the others take over the cells of a dead one.

        Raises BenchError where every worker has died, UnavailableError where one ended because the
        database or a disk stayed unavailable, and KeyboardInterrupt where the run was stopped.
        """
        context = multiprocessing.get_context("spawn")
        events: Queue[Event] = context.Queue()
        # Without a lock, which a worker that is killed would keep.
        stop.level = level = context.RawValue("i", stop.level.value)
        processes: list[BaseProcess] = [
            context.Process(
                target=run_worker_process, args=(self, rank, events, began, level), daemon=True
            )
            for rank in range(workers)
        ]
        with signals_blocked():
            for process in processes:
                process.start()
        try:
            while any(process.is_alive() for process in processes):
                drain_events(events, show)
            drain_events(events, show)
        finally:
            level.value = 2 if any(process.is_alive() for process in processes) else level.value
            end_processes(processes)
        if stop.requested:
            raise KeyboardInterrupt
        codes = [process.exitcode for process in processes]
        # One worker that ended normally is enough: it has evaluated what the others left open.
        if all(codes):
            if UnavailableError.exit_code in codes:
                raise UnavailableError("every worker has ended, see above; run again to go on.")
            raise BenchError("every worker died; run again to go on, with fewer --workers.")


def load_registry(
    allow_unsandboxed: bool,
    selection: Selection | None = None,
    kinds: Sequence[str] = ("threat", "defense", "attack"),
) -> Registry:
    """The registry of a selection; its submissions sandboxed, or unsandboxed by explicit flag.

    Submissions of other than the `kinds` are not registered.
    """
    registry = Registry.load(allow_unsandboxed=allow_unsandboxed)
    chosen = selection or Selection()
    named = {"threat": chosen.threats, "defense": chosen.defenses, "attack": chosen.attacks}
    wanted = {
        kind: _matching_submissions(registry, names)
        for kind, names in named.items()
        if names and ALL not in names
    }
    isolate_submissions(registry, wanted | {kind: () for kind in named if kind not in kinds})
    return registry


def _matching_submissions(registry: Registry, names: Sequence[str]) -> list[str]:
    """The submissions that these names, patterns and variants mean."""
    meant = [base_name(name) for name in names]
    return [own for own in registry.submissions if any(fnmatchcase(own, one) for one in meant)]


def waiting_of_run(show: Listener, stop: StopRequest) -> Waiting:
    """How a run waits for its database and its disks: with notices, until it is to stop."""
    return Waiting(
        WAIT_SECONDS, lambda text: show(RunNotice(text)),
        check=stop.raise_if_requested, check_at_work=stop.raise_if_overdue,
    )  # fmt: skip


def end_processes(processes: Sequence[BaseProcess]) -> None:
    """End worker processes: those that do not end by themselves within seconds are killed."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + END_SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()


def run_worker_process(
    matrix_run: MatrixRun, rank: int, events: Queue[Event], began: float, level: Level
) -> None:
    """Run one worker of a run that began at `began`; the process ends when its parent ends.

    Its exit code is 0 where it has evaluated everything, that of the BenchError that ended it, and
    130 where it was stopped.
    """
    stop = StopRequest(level, parent=os.getppid())
    with stopped_by_parent(stop):
        try:
            _work(matrix_run, rank, events.put, began, stop)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BenchError as error:
            events.put(RunNotice(f"worker {os.getpid()} ends: {error}"))
            code = error.exit_code
        else:
            return
    if os.getppid() != stop.parent:
        os._exit(code)  # no process reads the events that are left
    sys.exit(code)


def _work(
    matrix_run: MatrixRun, rank: int, send: Listener, began: float, stop: StopRequest
) -> None:
    registry = load_registry(matrix_run.allow_unsandboxed, matrix_run.selection)

    def report(event: Event) -> None:
        stop.raise_if_overdue()
        send(event)

    count = torch.cuda.device_count() if matrix_run.device == "auto" else 0
    own = replace(matrix_run, device=f"cuda:{rank % count}") if count else matrix_run
    with Store.open(matrix_run.url, waiting=waiting_of_run(send, stop)) as store:
        make_worker(own, store, registry, report, began, stop).run()


def _show_problems(registry: Registry, show: Listener) -> None:
    for problem in registry.problems:
        show(PluginProblem(f"refused: {problem}"))
    for name, why in registry.reasons_not_imported.items():
        show(PluginProblem(f"{name} waits: {why}."))


def drain_events(events: Queue[Event], show: Listener) -> None:
    """Show the events that the workers have sent, until none arrives for a while."""
    with suppress(queue.Empty):
        while True:
            show(events.get(timeout=LIVENESS_SECONDS))


def make_worker(
    matrix_run: MatrixRun,
    store: Store,
    registry: Registry,
    listener: Listener,
    began: float | None = None,
    stop: StopRequest | None = None,
) -> MatrixWorker:
    """A worker in this process.

    `began`: when its run began by the store's clock, None for now; `stop`: whether it is to stop.
    """
    set_deterministic()
    raise_thresholds()
    device = chosen_device(matrix_run.device)
    settings = RunSettings(device, matrix_run.batch, Numeric(matrix_run.numeric))
    return MatrixWorker(
        registry, store, matrix_run.selection, settings, CellPlayer(matrix_run.keep_images),
        certifiers=matrix_run.certify, listener=listener, run_began=began,
        stop=stop or StopRequest(),
        canaries=canaries_of_run(matrix_run, store, registry, listener),
    )  # fmt: skip


def canaries_of_run(
    matrix_run: MatrixRun, store: Store, registry: Registry, listener: Listener
) -> CanaryReport:
    """The report on the canaries for this code and machine; failures go to the listener."""
    set_deterministic()  # the number of threads is part of the machine class
    settings = RunSettings(chosen_device(matrix_run.device), numeric=Numeric(matrix_run.numeric))
    report = recorded_canaries(store, registry, settings)
    if report.failures:
        listener(RunNotice(f"Rows of this run are invalid. {report.sentence}"))
    return report


def set_deterministic() -> None:
    """Configure torch so that every run on one machine computes the same numbers."""
    # Small kernels gain nothing from threads; --workers uses the other cores.
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def chosen_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where available, else the CPU.

    Raises BenchError for an unknown name, UnavailableError where the device is missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f"--device came as {name!r}; use auto, cpu, cuda or cuda:N.") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UnavailableError(
            f"--device {name} was asked for; this machine has {count} CUDA devices."
        )
    return device


def require_choice(option: str, value: str, known: list[str]) -> None:
    """Raise BenchError where an option's value is not among the known ones."""
    if value not in known:
        raise BenchError(f"{option} came as {value!r}; use one of {', '.join(known)}.")
