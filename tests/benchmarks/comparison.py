"""Targets, their results, and the comparison of this project with a peer library."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tests.benchmarks import unit_cost
from tests.benchmarks.cases import Case, load_case
from tests.benchmarks.device_share import busy_share
from tests.benchmarks.our_runs import Runner
from tests.benchmarks.run_result import RunResult
from tests.benchmarks.unit_cost import UnitCost

ROUNDING = 1e-9  # error of a mean of shares


class Threshold(NamedTuple):
    """The bound that a target's figure must meet."""

    value: float
    at_most: bool = False
    """True: an upper bound; False: a lower bound."""

    def holds(self, figure: float) -> bool:
        """Whether a figure meets the bound, up to rounding."""
        gap = figure - self.value if self.at_most else self.value - figure
        return gap <= ROUNDING

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


class CountPair(NamedTuple):
    """A count per example, of this project and of the peer."""

    ours: float
    peer: float | None = None


NO_COUNTS = CountPair(0)


@dataclass(frozen=True)
class TargetResult:
    """The measured figures of one target: one row of the table."""

    target: str
    what: str
    unit: str
    """Unit of `ours` and `peer`."""
    ours: float
    peer: float | None
    ratio: float
    """The figure that is compared with the threshold."""
    threshold: float
    at_most: bool
    holds: bool
    robust_ours: float | None = None
    """Robust accuracy after re-verification, the mean over the pairs."""
    robust_peer: float | None = None
    forwards: CountPair = NO_COUNTS
    gradients: CountPair = NO_COUNTS
    examples: int = 0
    pairs: int = 1
    note: str = ""

    def fields(self) -> dict[str, Any]:
        """All fields as JSON values."""
        counts = {"forwards": self.forwards._asdict(), "gradients": self.gradients._asdict()}
        return asdict(self) | counts


class Scale(NamedTuple):
    """Limits on the size of a measurement."""

    pairs: int | None = None
    """At most this many pairs; None: as many as the target states."""
    examples: int | None = None
    device: str = "cpu"


Measure = Callable[["Target", Scale], TargetResult]


@dataclass(frozen=True)
class Target:
    """A figure to reach, and the function that measures it."""

    key: str
    """`T1.bf16`: variant `bf16` of target T1."""
    what: str
    threshold: Threshold
    measure: Measure
    examples: int
    pairs: int = 5
    bfloat16: bool = False
    """Measured only where the device has bfloat16 instructions."""

    def case(self, name: str, scale: Scale) -> Case:
        """The case of this name with the number of examples to measure, on the device."""
        count = min(self.examples, scale.examples or self.examples)
        return load_case(name).first(count).on(scale.device)

    @property
    def family(self) -> str:
        """The part of the key before the dot: T1 of T1.bf16."""
        return self.key.split(".")[0]

    def called(self, name: str) -> bool:
        """Whether a name selects this target: its key or its family."""
        return name in (self.key, self.family)

    def times(self, scale: Scale) -> int:
        """The number of pairs to measure."""
        return min(self.pairs, scale.pairs or self.pairs)


class Pair(NamedTuple):
    """One run of each implementation, and the least unit cost measured before and after."""

    ours: RunResult
    peer: RunResult
    unit_cost: UnitCost


NORM_TOLERANCE = 5e-4
"""Median norms that agree in three digits count as equal."""

WARM_UP_EXAMPLES = 8
"""Both implementations run on these first, untimed: first calls load code and allocate."""

FaultCheck = Callable[[Sequence[Pair]], str]
"""A further condition: the empty text where it holds, else the reason why it does not."""


def against_peer(
    name: str, ours: Runner, peer: Runner, *, check: FaultCheck | None = None
) -> Measure:
    """The measurement of this project against a peer on one case."""

    def measure(target: Target, scale: Scale) -> TargetResult:
        case = target.case(name, scale)
        for runner in (ours, peer):
            runner(case.first(WARM_UP_EXAMPLES), 0)
        pairs = [measured_pair(case, ours, peer, seed) for seed in range(target.times(scale))]
        row = summarised(target, case, pairs, (check or strength_fault)(pairs))
        return (
            row
            if scale.device == "cpu"
            else replace(row, note=with_busy_share(row.note, case, ours))
        )

    return measure


def with_busy_share(note: str, case: Case, runner: Runner) -> str:
    """Appends to a note the share of wall time in which the device had work."""
    busy = f"busy {busy_share(lambda: runner(case, 0), case.x.device):.0%}"
    return f"{note}; {busy}" if note else busy


def measured_pair(case: Case, ours: Runner, peer: Runner, seed: int) -> Pair:
    """Run both implementations once, with the unit cost measured before and after."""
    before = unit_cost.measure(case.model, case.x, case.y)
    our_run = ours(case, seed)
    peer_run = peer(case, seed)
    after = unit_cost.measure(case.model, case.x, case.y)
    return Pair(our_run, peer_run, before.minimum(after))


def summarised(target: Target, case: Case, pairs: Sequence[Pair], fault: str) -> TargetResult:
    """The medians over the pairs; the target holds where its threshold is met without fault."""
    ratio = statistics.median(pair.peer.seconds / pair.ours.seconds for pair in pairs)
    units = [len(case.x) * pair.unit_cost.step for pair in pairs]
    spent = zip(pairs, units, strict=True)
    costs = [(pair.ours.seconds / unit, pair.peer.seconds / unit) for pair, unit in spent]
    return TargetResult(
        target.key, target.what, "fb an example",
        ours=statistics.median(cost[0] for cost in costs),
        peer=statistics.median(cost[1] for cost in costs),
        ratio=ratio, threshold=target.threshold.value, at_most=target.threshold.at_most,
        holds=target.threshold.holds(ratio) and not fault,
        robust_ours=mean(pair.ours.robust for pair in pairs),
        robust_peer=mean(pair.peer.robust for pair in pairs),
        forwards=mean_counts(pairs, "forwards"), gradients=mean_counts(pairs, "gradients"),
        examples=len(case.x), pairs=len(pairs), note=fault,
    )  # fmt: skip


def mean_counts(pairs: Sequence[Pair], name: str) -> CountPair:
    """The means of one count over the pairs."""
    ours = mean(getattr(pair.ours, name) for pair in pairs)
    return CountPair(ours, mean(getattr(pair.peer, name) for pair in pairs))


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def strength_fault(pairs: Sequence[Pair]) -> str:
    """Why our attack is weaker: its mean robust accuracy is higher than the peer's."""
    ours, peer = mean(p.ours.robust for p in pairs), mean(p.peer.robust for p in pairs)
    return "" if ours <= peer + 1e-9 else f"leaves {ours:.2%} robust, the peer {peer:.2%}"


def distance_fault(pairs: Sequence[Pair]) -> str:
    """Why our distances are worse than the peer's.

    At least 99.5 % success and, on common successes, a median norm not above the peer's.
    """
    missed = max(pair.ours.robust for pair in pairs)
    ours, peer = median_distances(pairs)
    reason = f"success {1 - missed:.1%}, median L2 {ours:.4f}, the peer's {peer:.4f}"
    return "" if missed <= 0.005 and ours <= peer + NORM_TOLERANCE else reason


def median_distances(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Median distances of ours and of the peer, each the mean over the pairs."""
    found = [common_medians(pair.ours, pair.peer) for pair in pairs]
    return mean(ours for ours, _ in found), mean(peer for _, peer in found)


def common_medians(ours: RunResult, peer: RunResult) -> tuple[float, float]:
    """Median distances over examples that both broke, clean mistakes left out."""
    both = ours.broken & peer.broken & (ours.distance > 0) & (peer.distance > 0)
    return float(ours.distance[both].median()), float(peer.distance[both].median())


def select_targets(table: Sequence[Target], names: Sequence[str]) -> list[Target]:
    """The targets called T1 or T1.bf16, all without a name; KeyError for an unknown name."""
    for name in names:
        if not any(target.called(name) for target in table):
            known = ", ".join(dict.fromkeys(target.family for target in table))
            raise KeyError(f"no target is called {name}; there are {known}.")
    return [target for target in table if not names or any(map(target.called, names))]
