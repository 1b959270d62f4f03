"""One line of the table, and how two sides become one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tests.benchmarks import unit_cost
from tests.benchmarks.device_busy import share
from tests.benchmarks.models import World, world
from tests.benchmarks.ours import Side
from tests.benchmarks.outcome import Outcome
from tests.benchmarks.unit_cost import Floor

ROUNDING = 1e-9  # of a mean of shares


class Bar(NamedTuple):
    """What a figure must reach."""

    value: float
    at_most: bool = False
    """Otherwise at least."""

    def holds(self, figure: float) -> bool:
        """Whether it is reached."""
        gap = figure - self.value if self.at_most else self.value - figure
        return gap <= ROUNDING

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


class Both(NamedTuple):
    """A count of either side, for each example."""

    ours: float
    peer: float | None = None


NONE = Both(0)


@dataclass(frozen=True)
class Row:
    """What was measured of one target."""

    target: str
    what: str
    unit: str
    """Of `ours` and `peer`."""
    ours: float
    peer: float | None
    ratio: float
    """What the bar speaks of."""
    bar: float
    at_most: bool
    holds: bool
    robust_ours: float | None = None
    """Verified, of all examples, the mean over the pairs."""
    robust_peer: float | None = None
    forwards: Both = NONE
    gradients: Both = NONE
    examples: int = 0
    pairs: int = 1
    note: str = ""

    def fields(self) -> dict[str, Any]:
        """As JSON takes it."""
        counts = {"forwards": self.forwards._asdict(), "gradients": self.gradients._asdict()}
        return asdict(self) | counts


class Scale(NamedTuple):
    """How much is measured."""

    pairs: int | None = None
    """None: as many as the target says."""
    examples: int | None = None
    device: str = "cpu"


Measure = Callable[["Target", Scale], Row]


@dataclass(frozen=True)
class Target:
    """A promise about speed, and the way to see whether it is kept."""

    key: str
    """T1.fast: the form `fast` of target T1."""
    what: str
    bar: Bar
    measure: Measure
    examples: int
    pairs: int = 5
    bfloat16: bool = False
    """Holds only where the processor has the instructions."""

    def place(self, name: str, scale: Scale) -> World:
        """That world with as many examples as are to be measured, on the device."""
        count = min(self.examples, scale.examples or self.examples)
        return world(name).first(count).on(scale.device)

    @property
    def family(self) -> str:
        """T1 of T1.bf16."""
        return self.key.split(".")[0]

    def called(self, name: str) -> bool:
        """Whether a name means this target."""
        return name in (self.key, self.family)

    def times(self, scale: Scale) -> int:
        """How many pairs."""
        return min(self.pairs, scale.pairs or self.pairs)


class Pair(NamedTuple):
    """Both sides, one after the other, between two measurements of the floor."""

    ours: Outcome
    peer: Outcome
    floor: Floor


SAME = 5e-4
"""Norms that agree in three digits are the same."""

WARM = 8
"""Examples that both sides play first, off the clock: first calls load and allocate."""

Also = Callable[[Sequence[Pair]], str]
"""What else must hold: empty where it does, else why not."""


def race(name: str, ours: Side, peer: Side, *, also: Also | None = None) -> Measure:
    """Ours against a peer in one world."""

    def measure(target: Target, scale: Scale) -> Row:
        place = target.place(name, scale)
        for side in (ours, peer):
            side(place.first(WARM), 0)
        pairs = [paired(place, ours, peer, seed) for seed in range(target.times(scale))]
        row = compared(target, place, pairs, also(pairs) if also else strength(pairs))
        return row if scale.device == "cpu" else replace(row, note=busy(row.note, place, ours))

    return measure


def busy(note: str, place: World, side: Side) -> str:
    """The note, and how busy our side keeps the device."""
    told = f"busy {share(lambda: side(place, 0), place.x.device):.0%}"
    return f"{note}; {told}" if note else told


def paired(place: World, ours: Side, peer: Side, seed: int) -> Pair:
    """One pair. A side that cannot play says so before anything is timed."""
    before = unit_cost.measured(place.model, place.x, place.y)
    mine = ours(place, seed)
    other = peer(place, seed)
    return Pair(mine, other, before.least(unit_cost.measured(place.model, place.x, place.y)))


def compared(target: Target, place: World, pairs: Sequence[Pair], fault: str) -> Row:
    """The medians over the pairs; holds where the bar is reached and nothing else is at fault."""
    ratio = statistics.median(pair.peer.seconds / pair.ours.seconds for pair in pairs)
    units = [len(place.x) * pair.floor.step for pair in pairs]
    spent = zip(pairs, units, strict=True)
    costs = [(pair.ours.seconds / unit, pair.peer.seconds / unit) for pair, unit in spent]
    return Row(
        target.key, target.what, "fb an example",
        ours=statistics.median(cost[0] for cost in costs),
        peer=statistics.median(cost[1] for cost in costs),
        ratio=ratio, bar=target.bar.value, at_most=target.bar.at_most,
        holds=target.bar.holds(ratio) and not fault,
        robust_ours=mean(pair.ours.robust for pair in pairs),
        robust_peer=mean(pair.peer.robust for pair in pairs),
        forwards=Both(*counts(pairs, "forwards")), gradients=Both(*counts(pairs, "gradients")),
        examples=len(place.x), pairs=len(pairs), note=fault,
    )  # fmt: skip


def counts(pairs: Sequence[Pair], name: str) -> tuple[float, float]:
    """The means of one count over the pairs, ours and theirs."""
    ours = mean(getattr(pair.ours, name) for pair in pairs)
    return ours, mean(getattr(pair.peer, name) for pair in pairs)


def mean(values: Any) -> float:
    """Of a few numbers."""
    return statistics.fmean(values)


def strength(pairs: Sequence[Pair]) -> str:
    """Robust accuracy must be equal or lower, in the mean over the pairs."""
    ours, peer = mean(p.ours.robust for p in pairs), mean(p.peer.robust for p in pairs)
    return "" if ours <= peer + 1e-9 else f"leaves {ours:.2%} robust, the peer {peer:.2%}"


def nearness(pairs: Sequence[Pair]) -> str:
    """99.5 % success, and on common successes a median norm that is not above the peer's."""
    missed = max(pair.ours.robust for pair in pairs)
    ours, peer = norms(pairs)
    told = f"success {1 - missed:.1%}, median L2 {ours:.4f}, the peer's {peer:.4f}"
    return "" if missed <= 0.005 and ours <= peer + SAME else told


def norms(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Median distances of both sides, the means over the pairs."""
    found = [medians(pair.ours, pair.peer) for pair in pairs]
    return mean(ours for ours, _ in found), mean(peer for _, peer in found)


def medians(ours: Outcome, peer: Outcome) -> tuple[float, float]:
    """Median distances over what both have fooled and nobody got for nothing."""
    both = ours.broken & peer.broken & (ours.distance > 0) & (peer.distance > 0)
    return float(ours.distance[both].median()), float(peer.distance[both].median())


def named(table: Sequence[Target], names: Sequence[str]) -> list[Target]:
    """The targets called T1 or T1.bf16; all without a name. KeyError where a name fits none."""
    for name in names:
        if not any(target.called(name) for target in table):
            known = ", ".join(dict.fromkeys(target.family for target in table))
            raise KeyError(f"no target is called {name}; there are {known}.")
    return [target for target in table if not names or any(map(target.called, names))]
