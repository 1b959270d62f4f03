"""What a run would do: its cells with their states, and how long the open ones may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.evaluation import plan
from bench.evaluation.plan import PlannedPair, Selection
from bench.evaluation.progress import CellName, CostEstimates
from bench.evaluation.worker_count import WorkerCount, default_workers
from bench.plugin import Traits
from bench.registry.registry import Registry

ENDED = ("not applicable", "done")


class Forecast(NamedTuple):
    """How long the open cells of a run may take, by the costs that its database has recorded."""

    open_cells: int
    seconds: float
    """CPU seconds of the open cells whose attack has a record."""
    unknown: int
    """Open cells whose attack has none."""
    workers: WorkerCount

    @property
    def sentence(self) -> str:
        """The forecast in words, for stderr."""
        if not self.open_cells:
            return "No cell is open."
        cells = f"{self.open_cells} open cell{'' if self.open_cells == 1 else 's'}"
        if self.unknown == self.open_cells:
            return f"{cells}; this database has no cost of their attacks."
        rest = f", and {self.unknown} whose attacks have no cost here" if self.unknown else ""
        shared = ""
        if self.workers.workers > 1:
            each = time_text(self.seconds / self.workers.workers)
            shared = f"; {each} with {self.workers.workers} workers ({self.workers.reason})"
        return f"{cells}: about {time_text(self.seconds)}{shared}{rest}. Trainings come on top."


def planned_cells(
    registry: Registry,
    selection: Selection,
    pairs: Iterable[PlannedPair],
    states: Mapping[CellName, str],
    costs: CostEstimates,
) -> list[dict[str, Any]]:
    """Every pair with the state of its cell, and the seconds that an open cell may take.

    `seconds` follows from recorded cells of the same attack, against the same defense where there
    are any; None where the attack has no record.
    """
    rows = []
    for pair in pairs:
        names = (pair.threat.name, pair.attack.name, pair.defense.name)
        state = "not applicable" if pair.reason else states.get(names, "missing")
        seconds = None if state in ENDED else costs.recorded(pair.attack.name, pair.defense.name)
        if seconds is not None:
            seconds *= _item_count(registry, selection, pair)
        named = dict(zip(("threat", "attack", "defense"), names, strict=True))
        rows.append({**named, "state": state, "reason": pair.reason, "seconds": seconds})
    return rows


def forecast(cells: Sequence[Mapping[str, Any]], device: str) -> Forecast:
    """The forecast for planned cells on a device, as in `bench run --device`."""
    seconds = [cell["seconds"] for cell in cells if cell["state"] not in ENDED]
    known = [one for one in seconds if one is not None]
    workers = default_workers(device, len(seconds))
    return Forecast(len(seconds), sum(known), len(seconds) - len(known), workers)


def time_text(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> time_text(12.3), time_text(90), time_text(600), time_text(86400)
    ('12 s', '90 s', '10 min', '24.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _item_count(registry: Registry, selection: Selection, pair: PlannedPair) -> int:
    """Items of the cell of a pair: examples times targets, of a costly attack the first ones."""
    dataset = registry.find("dataset", pair.threat.dataset).value
    count = plan.example_count(pair.threat, pair.defense, selection, dataset)
    limit = Traits.of(pair.attack).examples or count
    targets = len(dataset.classes) - 1 if pair.threat.goal.rule == "all" else 1
    return min(count, limit) * targets
