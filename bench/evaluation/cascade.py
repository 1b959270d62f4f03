"""The order of attacks in rank mode, where each attack runs on the examples not broken before.

The required attacks come first, because ranks are computed from them alone; among them, and among
the others, the attacks with the lowest expected cost per broken example. The order is part of every
cell's key (`Cell.before`), so it depends on attacks and threat model alone, never on outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from bench.plugin import Access, Attack, Traits
from bench.store import CellRow

GRADIENT_ATTACKS = (
    "fgsm", "fgm-l2", "fgm-l1", "fgsm-targeted", "bim", "transfer", "transfer-standard", "pgd",
    "apgd-ce", "apgd-t-nearest", "apgd-l1-ce", "apgd-l1-t-nearest", "apgd-dlr", "pgd-kl",
    "pgd-l2step", "mi-fgsm", "deepfool", "pgd-margin", "apgd-t", "apgd-l1-t", "cw", "fab-t",
    "transfer-robust", "transfer-learned", "unbounded",
)  # fmt: skip
"""Gradient attacks by cost per newly broken example on the digits threat models, a gradient
evaluation counting as three forward passes. Attacks that are not listed follow."""

QUERY_ATTACKS = ("random", "square", "square-l2-100", "square-l1-100", "hopskipjump", "boundary")
"""Attacks without gradients: many queries per broken example. Attacks that are not listed follow,
among them longer variants of these."""


def in_cascade_order(
    attacks: Iterable[Attack], classes: int, required: Collection[str] = ()
) -> list[Attack]:
    """The attacks of one cascade: the required ones first, each part by expected cost."""
    return sorted(attacks, key=lambda a: (a.name not in required, *order_key(a, classes)))


def order_key(attack: Attack, classes: int) -> tuple[bool, int, float, str]:
    """The sort key of an attack by expected cost, smaller is earlier.

    Attacks that no table lists follow the listed ones of their kind, fewest total steps first;
    external and shared attacks, which have no steps, come last.
    """
    without_gradients = attack.needs is not Access.GRADIENTS
    known = QUERY_ATTACKS if without_gradients else GRADIENT_ATTACKS
    position = known.index(attack.name) if attack.name in known else len(known)
    steps = (
        attack.steps * Traits.restart_count(attack, classes)
        if Traits.has_steps(attack)
        else math.inf
    )
    return without_gradients, position, steps, attack.name


def cascade_as_run(
    rows: Iterable[CellRow], attacks: Sequence[str], limited: Collection[str] = ()
) -> dict[str, CellRow]:
    """Attack -> row of a defense's cascade as far as it was evaluated; `rows`: one threat model's.

    `limited` names the attacks that run on the first few examples only.
    An unfinished cell breaks no example: the next attack runs on the same examples. So it is after
    an attack that runs on the first few examples only, since it leaves the others undecided.
    """
    known = {(row.cell.attack, row.cell.before): row for row in rows}
    found: dict[str, CellRow] = {}
    before = ""
    for attack in attacks:
        row = known.get((attack, before))
        if row is not None:
            found[attack] = row
            decides = row.state == "done" and attack not in limited
            before = row.key if decides else before
    return found
