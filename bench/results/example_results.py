"""What has been played on a board, by example: the arrays from which every figure is made.

Only cells whose defense, attack and rules of play are the current ones count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.cards import AttackCard, DefenseCard
from bench.core.cells import CLEAN, FEW_EXAMPLES, CellState
from bench.core.hashing import canonical
from bench.core.outcomes import Outcomes, Verdict
from bench.results.current_cells import CurrentDigests, attack_digests, defense_digest
from bench.results.detection import Scored, scored
from bench.results.leaderboards import Leaderboard, is_costly
from bench.store import CellRow, ExamplesRow, Store

Bits = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AttackResult:
    """What one attack did to one defense, all its seeds and targets together. Arrays are [n]."""

    faced: Bits
    """Was the attack played on the example, on all of its targets? A cascade spares those already
    broken."""
    broken: Bits
    broken_8bit: Bits
    """Still broken after rounding to 8 bits."""
    step: Floats
    """Steps within the run of first success; inf where the example held."""
    total: Floats
    """Steps of that run and of all runs before it; inf where the example held."""
    forwards: Floats
    """Forwards up to the first success; inf where the example held."""
    distance: Floats
    """Of the nearest wrong answer, also beyond the radius on distance boards; inf without one."""
    attacked: Scored
    """The images it brought, item by item."""


@dataclass(frozen=True)
class DefenseResult:
    """One defense on one board."""

    defense: str
    digest: str
    examples: str
    """The digest of the examples it was played on: the board's, or the first few of them."""
    clean: Bits
    """[n]: right on the clean image; nowhere until the clean pass is done."""
    cleaned: bool
    """Is the clean pass done?"""
    scores: Scored
    """The clean images, where the defense rejects."""
    bouts: Mapping[str, AttackResult]
    """By attack, where at least one cell is done."""
    tier: str

    def robust(self, attacks: Iterable[str] | None = None) -> Bits:
        """[n]: right on the clean image and broken by none of the attacks (None: of all)."""
        names = self.bouts if attacks is None else attacks
        return self._except(self.bouts[name].broken for name in names if name in self.bouts)

    def decided_by(self, attacks: Iterable[str]) -> bool:
        """Does it depend on these attacks alone which examples are right?

        In a cascade it does not where another attack broke an example before they met it.
        """
        done = [name for name in attacks if name in self.bouts]
        met = np.ones(len(self.clean), np.bool_)
        for name in done:
            met &= self.bouts[name].faced
        return bool((met | ~self.robust(done)).all())

    def robust_8bit(self) -> Bits:
        """[n]: right, and broken by no attempt that survives rounding to 8 bits."""
        return self._except(bout.broken_8bit for bout in self.bouts.values())

    def fallen(self, attacks: Iterable[str]) -> Bits:
        """[n]: right on the clean image and broken by one of the attacks."""
        return self.clean & ~self.robust(attacks)

    def strongest(self, attacks: Iterable[str] | None = None) -> str | None:
        """The attack that leaves the fewest examples right; None where none is done."""
        names = sorted(self.bouts if attacks is None else set(attacks) & set(self.bouts))
        return min(names, key=lambda name: int(self.robust([name]).sum()), default=None)

    def _except(self, broken: Iterable[Bits]) -> Bits:
        right = self.clean.copy()
        for bits in broken:
            right &= ~bits
        return right


@dataclass(frozen=True)
class LeaderboardResults:
    """One board with everything that was played on it."""

    board: Leaderboard
    attacks: Mapping[str, AttackCard]
    """The attacks that are current, by name."""
    defenses: Mapping[str, DefenseCard]
    """The defenses that are current, by name."""
    cells: Mapping[tuple[str, str], tuple[CellRow, ...]]
    """Current cells by (defense, attack) in that order, the clean passes among them."""
    standings: Mapping[str, DefenseResult]
    """By defense, for all that have a cell of an attack here."""
    stale: Mapping[tuple[str, str], str]
    """By (defense, attack) without a current cell, where an older one is done: what has changed."""
    digest: str
    """SHA-256 over every example's verdict, whatever the order in which it was found."""


def load_results(store: Store, board: Leaderboard) -> LeaderboardResults:
    """Read one leaderboard; the outcomes of each done cell are read once."""
    attacks = {card.name: card for card in store.cards(AttackCard)}
    rows = sorted(_rows(store, board), key=_place)
    defenses = {
        card.name: card.model_copy(update={"digest": defense_digest(card, board.dataset, rows)})
        for card in store.cards(DefenseCard)
    }
    now = CurrentDigests(
        {name: card.digest for name, card in defenses.items()}, attack_digests(attacks.values())
    )
    cells = _current(rows, board, now)
    outcomes = {
        row.key: store.outcomes(row.key)
        for rows in cells.values()
        for row in rows
        if row.state == CellState.DONE
    }
    names = sorted({defense for defense, attack in cells if attack != CLEAN})
    standings = {}
    for name in names:
        (digest,) = {
            row.cell.examples for pair, rows in cells.items() if pair[0] == name for row in rows
        }
        examples = store.examples(digest)
        standings[name] = _standing(board, examples, defenses[name], attacks, cells, outcomes)
    kept = {pair: rows for pair, rows in cells.items() if pair[0] in standings}
    stale = _stale(rows, board, now, cells)
    return LeaderboardResults(
        board, attacks, defenses, kept, standings, stale, _digest(board, kept, outcomes)
    )


def _rows(store: Store, board: Leaderboard) -> list[CellRow]:
    """The cells on the board's examples, and those of its guests on the first few of them.

    A guest is a defense whose answers cost too much to meet all examples.
    """
    own = store.cells(examples=board.examples)
    here = {row.cell.defense for row in own if row.cell.threat_id == board.id}
    costly = {card.name for card in store.cards(DefenseCard) if is_costly(card)} - here
    every = store.cells() if costly else []
    sets = {
        row.cell.examples: store.examples(row.cell.examples)
        for row in every
        if row.cell.defense in costly
    }
    few = {
        d for d, s in sets.items() if s.dataset == board.dataset and s.n == FEW_EXAMPLES < board.n
    }
    apart = [row for row in every if row.cell.defense in costly and row.cell.examples in few]
    guests = {row.cell.defense for row in apart if row.cell.threat_id == board.id}
    return [r for r in own if r.cell.defense not in guests] + [
        r for r in apart if r.cell.defense in guests
    ]


def _current(
    rows: Iterable[CellRow], board: Leaderboard, now: CurrentDigests
) -> dict[tuple[str, str], tuple[CellRow, ...]]:
    kept = [row for row in rows if _is_here(row, board) and not now.change(row)]
    found: dict[tuple[str, str], tuple[CellRow, ...]] = {}
    for row in _whole_cascades(kept):
        pair = row.cell.defense, row.cell.attack
        found[pair] = (*found.get(pair, ()), row)
    return found


def _whole_cascades(rows: list[CellRow]) -> list[CellRow]:
    """The cells all of whose predecessors are there and done: only then is it known who fell
    before them."""
    done = {row.key: row.cell.before for row in rows if row.state == CellState.DONE}

    def whole(before: str) -> bool:
        return not before or (before in done and whole(done[before]))

    return [row for row in rows if whole(row.cell.before)]


def _is_here(row: CellRow, board: Leaderboard) -> bool:
    return row.cell.attack == CLEAN or (
        row.cell.threat_id == board.id and row.cell.mode == board.mode
    )


def _stale(
    rows: Iterable[CellRow],
    board: Leaderboard,
    now: CurrentDigests,
    current: Collection[tuple[str, str]],
) -> dict[tuple[str, str], str]:
    """What has changed since a cell was evaluated, by pairs that have no current cell.

    A cell that is itself current follows one in its cascade that is not.
    """
    done = [row for row in rows if row.state == CellState.DONE and _is_here(row, board)]
    return {
        (row.cell.defense, row.cell.attack): now.change(row) or "an attack before it in the cascade"
        for row in sorted(done, key=lambda row: row.updated)
        if (row.cell.defense, row.cell.attack) not in current
    }


def _place(row: CellRow) -> tuple[str, str, int, str, str]:
    return row.cell.defense, row.cell.attack, row.cell.seed, row.cell.numeric, row.key


def _standing(
    board: Leaderboard,
    examples: ExamplesRow,
    defense: DefenseCard,
    attacks: Mapping[str, AttackCard],
    cells: Mapping[tuple[str, str], tuple[CellRow, ...]],
    outcomes: Mapping[str, Outcomes],
) -> DefenseResult:
    done = {
        attack: [outcomes[row.key] for row in rows if row.key in outcomes]
        for (name, attack), rows in cells.items()
        if name == defense.name
    }
    passes = done.pop(CLEAN, [])
    tiers = {row.tier for (name, _), rows in cells.items() if name == defense.name for row in rows}
    return DefenseResult(
        defense=defense.name,
        digest=defense.digest,
        examples=examples.digest,
        clean=_clean(examples.n, passes),
        cleaned=bool(passes),
        scores=_scores(examples, passes),
        bouts={
            attack: _bout(board, examples, steps_of(attacks[attack]), parts)
            for attack, parts in done.items()
            if parts
        },
        tier=", ".join(sorted(tiers)),
    )


def steps_of(attack: AttackCard) -> int:
    """Steps of one run, as the card tells; 0 where an attack has none to tell."""
    return attack.steps or 0


def _clean(n: int, passes: list[Outcomes]) -> Bits:
    right = np.full(n, bool(passes))
    for outcome in passes:
        held = np.zeros(n, np.bool_)
        held[outcome.item] = outcome.verdict == Verdict.ROBUST
        right &= held
    return right


def _scores(examples: ExamplesRow, passes: list[Outcomes]) -> Scored:
    """Of the first clean pass; seeds make no other of a detector that is not random."""
    made = passes[0] if passes else Outcomes.concatenate([])
    return scored(made, examples.labels[made.item], clean=True)


def _bout(
    board: Leaderboard, examples: ExamplesRow, steps: int, parts: list[Outcomes]
) -> AttackResult:
    made = Outcomes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    per_example = len(examples.classes) - 1 if board.targets else 1
    n, example = examples.n, made.item // per_example
    broken = made.verdict == Verdict.BROKEN
    wrong = broken | (_answered_wrong(made, examples.labels[example]) & board.nearest)
    return AttackResult(
        faced=_all(n, per_example, made.item),
        broken=_any(n, example, broken),
        broken_8bit=_any(n, example, broken & made.eight_bit),
        step=_least(n, example, made.step, broken),
        total=_least(n, example, made.run * steps + made.step, broken),
        forwards=_least(n, example, made.forwards, broken),
        distance=_least(n, example, made.distance, wrong),
        attacked=scored(made, examples.labels[example]),
    )


def _answered_wrong(made: Outcomes, truth: npt.NDArray[np.int16]) -> Bits:
    """Beyond the radius a verdict is `held` whatever the answer was; label and score tell."""
    accepted = (made.label >= 0) & (made.rejection <= 0)
    wrong: Bits = (made.verdict == Verdict.ROBUST) & accepted & (made.label != truth)
    return wrong


def _any(n: int, example: npt.NDArray[np.int32], flags: Bits) -> Bits:
    """[n]: is the flag set for any item of the example?"""
    found = np.zeros(n, np.bool_)
    found[example[flags]] = True
    return found


def _all(n: int, per_example: int, items: npt.NDArray[np.int32]) -> Bits:
    """[n]: are all items of the example among these?"""
    met = np.zeros(n * per_example, np.bool_)
    met[items] = True
    return np.asarray(met.reshape(n, per_example).all(1))


def _least(
    n: int, example: npt.NDArray[np.int32], values: npt.NDArray[np.generic], where: Bits
) -> Floats:
    """[n]: the smallest value among the example's items, inf where there is none."""
    least = np.full(n, np.inf)
    np.minimum.at(least, example[where], values[where].astype(np.float64))
    return least


def _digest(
    board: Leaderboard,
    cells: Mapping[tuple[str, str], tuple[CellRow, ...]],
    outcomes: Mapping[str, Outcomes],
) -> str:
    sha = hashlib.sha256(canonical([board.id, board.examples]).encode())
    for pair, rows in cells.items():
        for row in rows:
            if row.key in outcomes:
                found = outcomes[row.key]
                sha.update(canonical([*pair, row.cell.seed, row.cell.items]).encode())
                sha.update(found.item.astype("<i4").tobytes())
                sha.update(found.verdict.tobytes())
    return sha.hexdigest()
