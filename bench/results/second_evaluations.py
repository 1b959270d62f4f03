"""Second evaluations of finished cells, compared with the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.core.outcomes import Outcomes
from bench.core.replication import Replication, differences
from bench.store import Store

MOST_NAMED = 10
"""Items that are named of one second evaluation; all of them are counted."""


@dataclass(frozen=True)
class SecondEvaluation:
    """What evaluating a cell again has shown."""

    machine: str
    """The machine class, on one line."""
    at: float
    """Unix time."""
    items: int
    differ: int
    """Items whose verdict differs from that of the first evaluation."""
    named: tuple[str, ...]
    """The first of these items with both verdicts and margins, one sentence each."""

    @property
    def sentence(self) -> str:
        """The machine class and what differs there."""
        if not self.differ:
            return f"again on {self.machine}: all {self.items} verdicts are the same."
        verb = "differs" if self.differ == 1 else "differ"
        counted = f"{self.differ} of {self.items} verdicts {verb}"
        return f"again on {self.machine}: {counted}: {' '.join(self.named)}"


def second_evaluations(
    store: Store, first: Mapping[str, Outcomes]
) -> dict[str, tuple[SecondEvaluation, ...]]:
    """The second evaluations of cells, given their first outcomes by key; oldest first."""
    return {
        key: tuple(_compared(store, one, first[key]) for one in found)
        for key, found in store.replications(first).items()
    }


def _compared(store: Store, second: Replication, first: Outcomes) -> SecondEvaluation:
    # Only where verdicts differ are the outcomes read, so that a page costs little.
    found = differences(first, store.replicated_outcomes(second)) if second.differ else []
    named = tuple(one.sentence for one in found[:MOST_NAMED])
    return SecondEvaluation(
        second.machine.sentence, second.at, len(first.item), second.differ, named
    )
