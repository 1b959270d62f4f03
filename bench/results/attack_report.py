"""The report of one attack on one leaderboard: what it breaks, what only it breaks, its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.cards import AttackCard
from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.core.variant_names import variant_order
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard
from bench.results.matrix import MatrixCell, matrix_cell
from bench.store import Store


@dataclass(frozen=True)
class AttackedDefense:
    """One attack against one defense."""

    cell: MatrixCell
    """State, robust accuracy, cost and refused candidates."""
    right: int
    """Examples that are right on the clean image and that the attack ran on."""
    broken: int
    """Of those, the examples that it broke."""
    only_here: tuple[int, ...]
    """Examples that it broke and no other attack did, ascending."""
    is_strongest: bool
    """Whether no attack on this defense broke more examples, and it broke at least one. Never in a
    cascade, where the first attack meets the most examples."""


@dataclass(frozen=True)
class AttackReport:
    """One attack against all defenses of a leaderboard."""

    card: AttackCard
    required: bool
    """Whether the leaderboard's protocol requires it."""
    defenses: Sequence[AttackedDefense]
    """The largest share of broken examples first; defenses without a figure come last."""

    @property
    def done(self) -> int:
        """Defenses that it has a figure for."""
        return sum(one.cell.robust is not None for one in self.defenses)

    @property
    def strongest_on(self) -> int:
        """Defenses on which no attack broke more examples."""
        return sum(one.is_strongest for one in self.defenses)

    @property
    def broken_only_here(self) -> int:
        """Examples over all defenses that no other attack broke."""
        return sum(len(one.only_here) for one in self.defenses)


def load_attack_report(store: Store, leaderboard: Leaderboard, attack: str) -> AttackReport:
    """`attack_report` of a leaderboard."""
    return attack_report(load_results(store, leaderboard), attack)


def attack_report(results: LeaderboardResults, attack: str) -> AttackReport:
    """The report of an attack from results that are already loaded.

    Raises BenchError where no such attack has a card.
    """
    if attack not in results.attack_cards:
        raise BenchError(
            f"{attack!r} is no attack of this database; `bench list attacks` names those there are."
        )
    found = [
        _attacked(results, result, attack)
        for result in results.defenses.values()
        if attack in result.attacks or (result.defense, attack) in results.cells
    ]
    return AttackReport(
        results.attack_cards[attack],
        attack in results.leaderboard.required,
        sorted(found, key=_place),
    )


def _place(one: AttackedDefense) -> tuple[bool, float, str]:
    share = one.broken / one.right if one.right else 0.0
    return one.cell.robust is None, -share, one.cell.defense


def _attacked(results: LeaderboardResults, result: DefenseResult, attack: str) -> AttackedDefense:
    cell = matrix_cell(results, result.defense, attack)
    found = result.attacks.get(attack)
    if found is None:
        return AttackedDefense(cell, 0, 0, (), is_strongest=False)
    broken = result.broken_by([attack])
    others = result.broken_by(name for name in result.attacks if name != attack)
    most = max(int(result.broken_by([name]).sum()) for name in result.attacks)
    cascade = results.leaderboard.mode != "full"
    return AttackedDefense(
        cell,
        int((result.clean & found.evaluated).sum()),
        int(broken.sum()),
        tuple(np.flatnonzero(broken & ~others).tolist()),
        is_strongest=not cascade and 0 < most == int(broken.sum()),
    )


def attack_names(results: LeaderboardResults) -> list[str]:
    """The attacks with a finished cell on a leaderboard: required ones first, then by name."""
    done = {
        attack
        for (_, attack), rows in results.cells.items()
        if attack in results.attack_cards and any(row.state == CellState.DONE for row in rows)
    }
    required = results.leaderboard.required
    return sorted(done, key=lambda name: (name not in required, variant_order(name)))


def load_attack_names(store: Store, leaderboard: Leaderboard) -> list[str]:
    """`attack_names` of a leaderboard."""
    return attack_names(load_results(store, leaderboard))
