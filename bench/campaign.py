"""A run as a person asks for it: one worker here, or several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench import cascade, matrix
from bench.arena import Setting
from bench.events import Event, Listener
from bench.matrix import ALL, Pair, Selection
from bench.memory import keep
from bench.progress import Costs, Show
from bench.records import (
    CLEAN,
    MODES,
    BenchError,
    CellState,
    Numeric,
    Outcomes,
    UnfitError,
)  # fmt: skip
from bench.registry import Registry
from bench.runner import Worker
from bench.sandbox import lock_in
from bench.store import CellRow, Store
from bench.threat import ThreatModel

WATCH = 0.5  # seconds between looks at whether a child process lives


@dataclass(frozen=True)
class Campaign:
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
        choose("--mode", self.selection.mode, list(MODES))
        choose("--numeric", self.numeric, [str(kind) for kind in Numeric])
        choose("--certify", self.certify, ["none", "quick", "all"])
        choose("--keep-images", self.keep_images, ["none", "sample", "all"])

    def threats(self) -> list[ThreatModel]:
        """The boards of the selection, in display order."""
        registry = Registry.load(allow_unsandboxed=self.allow_unsandboxed)
        return matrix.threats(registry, self.selection)

    def plan(self) -> list[dict[str, str]]:
        """Every pair of the selection with its state, nothing played."""
        registry = world(self.allow_unsandboxed, self.selection)
        pairs = matrix.pairs(registry, self.selection)
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
        registry = world(self.allow_unsandboxed, self.selection)
        pairs = matrix.pairs(registry, self.selection)
        with Store.open(self.url) as store:
            costs = Costs(store.cells())
            names = {(p.threat.name, p.attack.name, p.defense.name): p for p in pairs}
            finished = {n for n, row in self._cells(store, registry, pairs) if is_done(row)}
            open_cells = [n for n, pair in names.items() if not pair.reason and n not in finished]
            with Show(open_cells, costs, quiet=self.quiet) as show:
                for problem in registry.problems:
                    show(Event("problem", f"refused: {problem}"))
                for name, why in registry.waits.items():
                    show(Event("problem", f"{name} waits: {why}."))
                if self.workers == 1:
                    worker(self, store, registry, show).run()
                else:
                    self._together(show, store.clock())
            rows = [row for _, row in self._cells(store, registry, pairs)]
            return sum(row.state is CellState.FAILED for row in rows)

    def _cells(
        self, store: Store, registry: Registry, pairs: Iterable[Pair]
    ) -> Iterator[tuple[tuple[str, str, str], CellRow]]:
        """(threat, attack, defense) and cell of each pair, on the examples of this campaign."""
        counts: dict[tuple[str, str, str], int] = {}
        for pair in pairs:
            dataset = registry.find("dataset", pair.threat.dataset).value
            name = (pair.threat.name, pair.attack.name, pair.defense.name)
            counts[name] = matrix.examples(pair.threat, pair.defense, self.selection, dataset)
        digests = {card.name: card.digest for card in registry.cards() if card.kind == "attack"}
        asked = (self.selection.seed, self.selection.mode, self.numeric)
        found: dict[tuple[str, str], list[CellRow]] = {}
        for row in current(store):
            name = (row.threat, row.attack, row.defense)
            same = (row.seed, row.mode, row.numeric) == asked
            same = same and row.attack_digest == digests.get(row.attack)
            if same and name in counts and store.examples(row.examples).n == counts[name]:
                found.setdefault((row.threat, row.defense), []).append(row)
        for (threat, defense), rows in found.items():
            names = [attack for board, attack, name in counts if (board, name) == (threat, defense)]
            # A twin that could not be built once left a failed cell beside the finished one.
            told = {(row.attack, row.before): row for row in sorted(rows, key=is_done)}.values()
            here = cascade.stand(told, names).values() if self.selection.mode == "rank" else told
            yield from (((threat, row.attack, defense), row) for row in here)

    def _together(self, show: Listener, began: float) -> None:
        """Several processes on one database; whoever dies is missed by nobody."""
        context = multiprocessing.get_context("spawn")
        events: Queue[Event] = context.Queue()
        crew: list[BaseProcess] = [
            context.Process(target=member, args=(self, rank, events, began), daemon=True)
            for rank in range(self.workers)
        ]
        for process in crew:
            process.start()
        try:
            while any(process.is_alive() for process in crew):
                hear(events, show)
            hear(events, show)
        finally:
            for process in crew:
                process.terminate()
        # One survivor is enough: it takes over what the others left open.
        if all(process.exitcode for process in crew):
            raise BenchError("every worker died; run again to go on, with fewer --workers.")


def world(allow_unsandboxed: bool, selection: Selection | None = None) -> Registry:
    """All that a selection may play: submissions behind walls, or here at the user's word."""
    registry = Registry.load(allow_unsandboxed=allow_unsandboxed)
    chosen = selection or Selection()
    named = {"defense": chosen.defenses, "attack": chosen.attacks}
    lock_in(registry, {k: names for k, names in named.items() if names and ALL not in names})
    return registry


def member(campaign: Campaign, rank: int, events: Queue[Event], began: float) -> None:
    """One worker process of a run that began then; it ends with its parent."""
    parent = os.getppid()
    registry = world(campaign.allow_unsandboxed, campaign.selection)

    def send(event: Event) -> None:
        if os.getppid() != parent:
            os._exit(130)
        events.put(event)

    count = torch.cuda.device_count() if campaign.device == "auto" else 0
    own = replace(campaign, device=f"cuda:{rank % count}") if count else campaign
    with Store.open(campaign.url) as store:
        worker(own, store, registry, send, began).run()


def hear(events: Queue[Event], show: Listener) -> None:
    """Show what the workers have sent, until none has anything to say."""
    try:
        while True:
            show(events.get(timeout=WATCH))
    except queue.Empty:
        return


def worker(
    campaign: Campaign,
    store: Store,
    registry: Registry,
    listener: Listener,
    began: float | None = None,
) -> Worker:
    """A worker of this campaign in this process; of a run that begins now, or began then."""
    deterministic()
    keep()
    setting = Setting(chosen_device(campaign.device), campaign.batch, Numeric(campaign.numeric))
    return Worker(
        registry, store, campaign.selection, setting, keep=campaign.keep_images,
        certifiers=campaign.certify, listener=listener, began=began,
    )  # fmt: skip


def deterministic() -> None:
    """The same arithmetic on every run of one machine."""
    # Threads of one small kernel mostly wait for each other; cores are filled by --workers.
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def chosen_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; UnfitError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f"--device came as {name!r}; use auto, cpu, cuda or cuda:N.") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UnfitError(f"--device {name} was asked for; this machine has {count} CUDA devices.")
    return device


def choose(option: str, came: str, known: list[str]) -> None:
    """Refuse what is not a known choice."""
    if came not in known:
        raise BenchError(f"{option} came as {came!r}; use one of {', '.join(known)}.")


def is_done(row: CellRow) -> bool:
    """Whether the cell carries a figure."""
    return row.state is CellState.DONE


def current(store: Store) -> list[CellRow]:
    """Cells of the defenses as they are now; older weights' cells are history."""
    cards = store.cards("defense")
    digests = {(c.name, d) for c in cards for d in c.detail.get("digests", {}).values()}
    return [row for row in store.cells() if (row.defense, row.defense_digest) in digests]


def reproduced(
    key: str, url: str | None, device: str, allow_unsandboxed: bool
) -> Mapping[str, Any]:
    """Play one finished cell again, in memory, and compare every verdict."""
    with Store.open(url, read_only=True) as store:
        row = named_cell(store, key)
        kept = store.outcomes(row.key)
        count = store.examples(row.examples).n
    registry = world(allow_unsandboxed, Selection((), (row.defense,), (row.attack,)))
    again = played_again(registry, row, kept.item.tolist(), count, chosen_device(device))
    differ = kept.item[(kept.verdict != again.verdict)].tolist()
    name = f"{row.threat} · {row.attack} · {row.defense}"
    sentence = f"{name}: all {row.items} verdicts are the same."
    if differ:
        sentence = f"{name}: {len(differ)} of {row.items} verdicts differ, first item {differ[0]}."
    return {"cell": row.key, "same": not differ, "differ": differ, "sentence": sentence}


def named_cell(store: Store, key: str) -> CellRow:
    """The one finished cell whose key begins so."""
    rows = [row for row in store.cells() if row.key.startswith(key) and row.attack != CLEAN]
    rows = [row for row in rows if row.state is CellState.DONE]
    if len(rows) != 1:
        raise BenchError(
            f"{len(rows)} finished cells have a key that begins with {key!r}; give more of it, "
            "as `bench report --json` prints it."
        )
    return rows[0]


def played_again(
    registry: Registry, row: CellRow, met: Sequence[int], count: int, device: torch.device
) -> Outcomes:
    """The outcomes of a cell, the items `met` of it, played from the plugins of today."""
    selection = Selection((row.threat,), (row.defense,), (row.attack,), count, row.seed, row.mode)
    (pair,) = matrix.pairs(registry, selection)
    with TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/again.db") as aside:
        hand = Worker(registry, aside, selection, Setting(device, numeric=Numeric(row.numeric)))
        arena, source = hand.builder.seats(pair)
        cell = arena.cell(pair.threat, pair.attack, row.mode, source)
        if row.before:
            cell = replace(cell, before=row.before, items=row.items)
        if cell.key != row.key:
            raise BenchError(
                f"{row.defense} or {row.attack} has changed since this cell was played: "
                f"its key would be {cell.key[:12]} now, it was {row.key[:12]}."
            )
        chunks = hand.chunks(pair, arena, source, met=met)
        return Outcomes.concatenate([chunk.outcomes for chunk in chunks])
