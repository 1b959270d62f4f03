"""A run as requested on the command line: one worker, or several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

import torch

from bench.core.cards import AttackCard
from bench.core.cells import MODES, CellState, Numeric
from bench.core.errors import BenchError, UnavailableError
from bench.evaluation import cascade, plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.events import Event, Listener
from bench.evaluation.malloc import raise_thresholds
from bench.evaluation.plan import ALL, PlannedPair, Selection
from bench.evaluation.progress import CostEstimates, ProgressDisplay
from bench.evaluation.worker import Worker
from bench.registry.registry import Registry
from bench.results.current_cells import attack_digests, current_cells
from bench.sandbox.adapter import isolate_submissions
from bench.store import CellRow, Store
from bench.threats.threat_model import ThreatModel

WATCH = 0.5  # seconds between looks at whether a child process lives


@dataclass(frozen=True)
class MatrixRun:
    """What to play, on which machine, into which database."""

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
        """The boards of the selection, in display order."""
        registry = Registry.load(allow_unsandboxed=self.allow_unsandboxed)
        return plan.selected_threats(registry, self.selection)

    def plan(self) -> list[dict[str, str]]:
        """Every pair of the selection with its state, nothing played."""
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
        """Play; how many cells failed."""
        registry = load_registry(self.allow_unsandboxed, self.selection)
        pairs = plan.plan_pairs(registry, self.selection)
        with Store.open(self.url) as store:
            costs = CostEstimates(store.cells())
            names = {(p.threat.name, p.attack.name, p.defense.name): p for p in pairs}
            finished = {n for n, row in self._cells(store, registry, pairs) if is_done(row)}
            open_cells = [n for n, pair in names.items() if not pair.reason and n not in finished]
            with ProgressDisplay(open_cells, costs, quiet=self.quiet) as show:
                for problem in registry.problems:
                    show(Event("problem", f"refused: {problem}"))
                for name, why in registry.reasons_not_imported.items():
                    show(Event("problem", f"{name} waits: {why}."))
                if self.workers == 1:
                    make_worker(self, store, registry, show).run()
                else:
                    self._together(show, store.clock())
            rows = [row for _, row in self._cells(store, registry, pairs)]
            return sum(row.state is CellState.FAILED for row in rows)

    def _cells(
        self, store: Store, registry: Registry, pairs: Sequence[PlannedPair]
    ) -> Iterator[tuple[tuple[str, str, str], CellRow]]:
        """(threat, attack, defense) and cell of each pair, on the examples of this matrix_run."""
        counts: dict[tuple[str, str, str], int] = {}
        ids = {pair.threat.name: pair.threat.id for pair in pairs}
        for pair in pairs:
            dataset = registry.find("dataset", pair.threat.dataset).value
            name = (pair.threat.name, pair.attack.name, pair.defense.name)
            counts[name] = plan.example_count(pair.threat, pair.defense, self.selection, dataset)
        digests = attack_digests(c for c in registry.cards() if isinstance(c, AttackCard))
        asked = (self.selection.seed, self.selection.mode, self.numeric)
        found: dict[tuple[str, str], list[CellRow]] = {}
        for row in current_cells(store, digests):
            name = (row.threat, row.attack, row.defense)
            same = (row.seed, row.mode, row.numeric) == asked
            same = same and row.threat_id == ids.get(row.threat)
            if same and name in counts and store.examples(row.examples).n == counts[name]:
                found.setdefault((row.threat, row.defense), []).append(row)
        for (threat, defense), rows in found.items():
            names = [attack for board, attack, name in counts if (board, name) == (threat, defense)]
            # A surrogate that could not be built once left a failed cell beside the finished one.
            told = {(row.attack, row.before): row for row in sorted(rows, key=is_done)}.values()
            here = (
                cascade.cascade_as_run(told, names).values()
                if self.selection.mode == "rank"
                else told
            )
            yield from (((threat, row.attack, defense), row) for row in here)

    def _together(self, show: Listener, began: float) -> None:
        """Several processes on one database; whoever dies is missed by nobody."""
        context = multiprocessing.get_context("spawn")
        events: Queue[Event] = context.Queue()
        crew: list[BaseProcess] = [
            context.Process(target=run_member, args=(self, rank, events, began), daemon=True)
            for rank in range(self.workers)
        ]
        for process in crew:
            process.start()
        try:
            while any(process.is_alive() for process in crew):
                drain_events(events, show)
            drain_events(events, show)
        finally:
            for process in crew:
                process.terminate()
        # One survivor is enough: it takes over what the others left open.
        if all(process.exitcode for process in crew):
            raise BenchError("every worker died; run again to go on, with fewer --workers.")


def load_registry(allow_unsandboxed: bool, selection: Selection | None = None) -> Registry:
    """All that a selection may play: submissions behind walls, or here at the user's word."""
    registry = Registry.load(allow_unsandboxed=allow_unsandboxed)
    chosen = selection or Selection()
    named = {"defense": chosen.defenses, "attack": chosen.attacks}
    isolate_submissions(
        registry, {k: names for k, names in named.items() if names and ALL not in names}
    )
    return registry


def run_member(matrix_run: MatrixRun, rank: int, events: Queue[Event], began: float) -> None:
    """One worker process of a run that began then; it ends with its parent."""
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


def drain_events(events: Queue[Event], show: Listener) -> None:
    """Show what the workers have sent, until none has anything to say."""
    try:
        while True:
            show(events.get(timeout=WATCH))
    except queue.Empty:
        return


def make_worker(
    matrix_run: MatrixRun,
    store: Store,
    registry: Registry,
    listener: Listener,
    began: float | None = None,
) -> Worker:
    """A worker of this matrix_run in this process; of a run that begins now, or began then."""
    set_deterministic()
    raise_thresholds()
    setting = RunSettings(
        chosen_device(matrix_run.device), matrix_run.batch, Numeric(matrix_run.numeric)
    )
    return Worker(
        registry, store, matrix_run.selection, setting, keep=matrix_run.keep_images,
        certifiers=matrix_run.certify, listener=listener, began=began,
    )  # fmt: skip


def set_deterministic() -> None:
    """The same arithmetic on every run of one machine."""
    # Threads of one small kernel mostly wait for each other; cores are filled by --workers.
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def chosen_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; UnavailableError where it is not there."""
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


def require_choice(option: str, came: str, known: list[str]) -> None:
    """Refuse what is not a known choice."""
    if came not in known:
        raise BenchError(f"{option} came as {came!r}; use one of {', '.join(known)}.")


def is_done(row: CellRow) -> bool:
    """Whether the cell carries a figure."""
    return row.state is CellState.DONE
