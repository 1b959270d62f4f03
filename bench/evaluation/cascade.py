"""The order of a cascade: who plays first where later attacks meet only what is left.

The required attacks come first, for ranks come from what they alone leave; then, among them and
among the others, the cheapest kill. The order is part of every cell's identity (`Cell.before`), so
it is fixed: it depends on attacks and rules alone, never on what a run has seen.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from bench.plugin import Access, Attack, Traits
from bench.store import CellRow

FIRST = (
    "fgsm", "fgm-l2", "fgm-l1", "fgsm-targeted", "bim", "transfer", "pgd", "apgd-ce", "apgd-l1-ce",
    "apgd-dlr", "pgd-kl", "pgd-l2step", "mi-fgsm", "deepfool", "pgd-margin", "apgd-t", "apgd-l1-t",
    "cw", "fab-t", "unbounded",
)  # fmt: skip
"""Attacks that ask for gradients, by what they broke on the digits boards that those before them
had left, a gradient pass (as three forward passes) being the cost. Unknown ones follow."""

LAST = ("random", "square", "boundary")
"""Attacks that ask for answers alone: many queries, few kills that are left. Unknown ones follow,
so that longer forms of these come at the end."""


def cascade_order(
    attacks: Iterable[Attack], classes: int, required: Collection[str] = ()
) -> list[Attack]:
    """The attacks of one cascade, the required ones first, then the cheapest expected kill.

    Unknown ones stand behind the known of their kind by the steps of all their runs, the fewest
    first.
    """
    return sorted(attacks, key=lambda a: (a.name not in required, *order_key(a, classes)))


def order_key(attack: Attack, classes: int) -> tuple[bool, int, float, str]:
    """Where an attack stands; smaller is earlier. A run of its own says no steps: it comes last."""
    late = attack.needs is not Access.GRADIENTS
    known = LAST if late else FIRST
    at = known.index(attack.name) if attack.name in known else len(known)
    steps = math.inf if Traits.is_external(attack) else attack.steps * Traits.runs(attack, classes)
    return late, at, steps, attack.name


def cascade_as_run(rows: Iterable[CellRow], attacks: Sequence[str]) -> dict[str, CellRow]:
    """One defense's cascade as far as it was played, by attack, of `rows` of one board.

    A cell that was not finished breaks nothing: who comes next meets the same survivors.
    """
    known = {(row.attack, row.before): row for row in rows}
    found: dict[str, CellRow] = {}
    before = ""
    for attack in attacks:
        row = known.get((attack, before))
        if row is not None:
            found[attack] = row
            before = row.key if row.state == "done" else before
    return found
