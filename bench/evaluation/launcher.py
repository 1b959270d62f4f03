"""Runs a selection as requested on the command line, in one process or several."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

import torch

from bench.core.cards import AttackCard
from bench.core.cells import MODES, CellState, Numeric
from bench.core.errors import BenchError, UnavailableError
from bench.evaluation import cascade, plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.events import Event, Listener, PluginProblem
from bench.evaluation.malloc import raise_thresholds
from bench.evaluation.plan import ALL, PlannedPair, Selection
from bench.evaluation.progress import CostEstimates, ProgressDisplay
from bench.evaluation.worker import MatrixWorker
from bench.registry.registry import Registry
from bench.results.current_cells import attack_digests, current_cells
from bench.sandbox.adapter import isolate_submissions
from bench.store import CellRow, Store
from bench.threats.threat_model import ThreatModel

LIVENESS_SECONDS = 0.5  # between two checks that a worker process is alive


@dataclass(frozen=True)
class MatrixRun:
    """A run: which cells, on which device, into which database."""

    selection: Selection
    url: str | None
    device: str = "auto"
    batch: int = 128
    workers: int = 1
    keep_images: str = "sample"
    allow_unsandboxed: bool = False
    quiet: bool = False
    numeric: str = Numeric.FLOAT32
    certify: str = "quick"

    def __post_init__(self) -> None:
        require_choice("--mode", self.selection.mode, list(MODES))
        require_choice("--numeric", self.numeric, [str(kind) for kind in Numeric])
        require_choice("--certify", self.certify, ["none", "quick", "all"])
        require_choice("--keep-images", self.keep_images, ["none", "sample", "all"])

    def threats(self) -> list[ThreatModel]:
        """The threat models of the selection, in display order."""
        registry = Registry.load(allow_unsandboxed=self.allow_unsandboxed)
        return plan.selected_threats(registry, self.selection)

    def plan(self) -> list[dict[str, str]]:
        """Every pair of the selection with the state of its cell; evaluates nothing."""
        registry = load_registry(self.allow_unsandboxed, self.selection)
        pairs = plan.plan_pairs(registry, self.selection)
        with Store.open(self.url) as store:
            states = {name: str(row.state) for name, row in self._cells(store, registry, pairs)}
        rows = []
        for pair in pairs:
            names = (pair.threat.name, pair.attack.name, pair.defense.name)
            state = "not applicable" if pair.reason else states.get(names, "missing")
            named = dict(zip(("threat", "attack", "defense"), names, strict=True))
            rows.append({**named, "state": state, "reason": pair.reason})
        return rows

    def run(self) -> int:
        """Evaluate the open cells; returns the number of failed cells."""
        registry = load_registry(self.allow_unsandboxed, self.selection)
        pairs = plan.plan_pairs(registry, self.selection)
        with Store.open(self.url) as store:
            costs = CostEstimates(store.cells())
            names = {(p.threat.name, p.attack.name, p.defense.name): p for p in pairs}
            finished = {n for n, row in self._cells(store, registry, pairs) if is_done(row)}
            open_cells = [n for n, pair in names.items() if not pair.reason and n not in finished]
            with ProgressDisplay(open_cells, costs, quiet=self.quiet) as show:
                _show_problems(registry, show)
                if self.workers == 1:
                    make_worker(self, store, registry, show).run()
                else:
                    self._run_processes(show, store.clock())
            rows = [row for _, row in self._cells(store, registry, pairs)]
            return sum(row.state is CellState.FAILED for row in rows)

    def _cells(
        self, store: Store, registry: Registry, pairs: Sequence[PlannedPair]
    ) -> Iterator[tuple[tuple[str, str, str], CellRow]]:
        """Yield (threat, attack, defense) and database row of each pair's current cell."""
        counts: dict[tuple[str, str, str], int] = {}
        ids = {pair.threat.name: pair.threat.id for pair in pairs}
        for pair in pairs:
            dataset = registry.find("dataset", pair.threat.dataset).value
            name = (pair.threat.name, pair.attack.name, pair.defense.name)
            counts[name] = plan.example_count(pair.threat, pair.defense, self.selection, dataset)
        digests = attack_digests(c for c in registry.cards() if isinstance(c, AttackCard))
        wanted = (self.selection.seed, self.selection.mode, self.numeric)
        found: dict[tuple[str, str], list[CellRow]] = {}
        for row in current_cells(store, digests):
            name = (row.cell.threat, row.cell.attack, row.cell.defense)
            same = (row.cell.seed, row.cell.mode, row.cell.numeric) == wanted
            same = same and row.cell.threat_id == ids.get(row.cell.threat)
            if same and name in counts and store.examples(row.cell.examples).n == counts[name]:
                found.setdefault((row.cell.threat, row.cell.defense), []).append(row)
        for (threat, defense), rows in found.items():
            names = [a for t, a, d in counts if (t, d) == (threat, defense)]
            # A cell may also have a failed row, from when its surrogate could not be built.
            by_key = {(r.cell.attack, r.cell.before): r for r in sorted(rows, key=is_done)}
            latest = list(by_key.values())
            if self.selection.mode == "rank":
                latest = list(cascade.cascade_as_run(latest, names).values())
            yield from (((threat, row.cell.attack, defense), row) for row in latest)

    def _run_processes(self, show: Listener, began: float) -> None:
        """Run several workers on one database; the others take over the cells of a dead one.

        Raises BenchError where every worker has died.
        """
        context = multiprocessing.get_context("spawn")
        events: Queue[Event] = context.Queue()
        processes: list[BaseProcess] = [
            context.Process(
                target=run_worker_process, args=(self, rank, events, began), daemon=True
            )
            for rank in range(self.workers)
        ]
        for process in processes:
            process.start()
        try:
            while any(process.is_alive() for process in processes):
                drain_events(events, show)
            drain_events(events, show)
        finally:
            for process in processes:
                process.terminate()
        # One worker that ended normally is enough: it has evaluated what the others left open.
        if all(process.exitcode for process in processes):
            raise BenchError("every worker died; run again to go on, with fewer --workers.")


def load_registry(allow_unsandboxed: bool, selection: Selection | None = None) -> Registry:
    """The registry of a selection; its submissions sandboxed, or unsandboxed by explicit flag."""
    registry = Registry.load(allow_unsandboxed=allow_unsandboxed)
    chosen = selection or Selection()
    named = {"defense": chosen.defenses, "attack": chosen.attacks}
    isolate_submissions(
        registry, {k: names for k, names in named.items() if names and ALL not in names}
    )
    return registry


def run_worker_process(
    matrix_run: MatrixRun, rank: int, events: Queue[Event], began: float
) -> None:
    """Run one worker of a run that began at `began`; the process ends when its parent ends."""
    parent = os.getppid()
    registry = load_registry(matrix_run.allow_unsandboxed, matrix_run.selection)

    def send(event: Event) -> None:
        if os.getppid() != parent:
            os._exit(130)
        events.put(event)

    count = torch.cuda.device_count() if matrix_run.device == "auto" else 0
    own = replace(matrix_run, device=f"cuda:{rank % count}") if count else matrix_run
    with Store.open(matrix_run.url) as store:
        make_worker(own, store, registry, send, began).run()


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
) -> MatrixWorker:
    """A worker in this process; `began`: when its run began by the store's clock, None for now."""
    set_deterministic()
    raise_thresholds()
    device = chosen_device(matrix_run.device)
    settings = RunSettings(device, matrix_run.batch, Numeric(matrix_run.numeric))
    return MatrixWorker(
        registry, store, matrix_run.selection, settings, CellPlayer(matrix_run.keep_images),
        certifiers=matrix_run.certify, listener=listener, run_began=began,
    )  # fmt: skip


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


def is_done(row: CellRow) -> bool:
    """Whether the cell is finished and has a figure."""
    return row.state is CellState.DONE
