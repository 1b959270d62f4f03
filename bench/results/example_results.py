"""Results per example of a leaderboard's current cells: the arrays behind every figure."""

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
from bench.results.detection import RejectionScores, rejection_scores
from bench.results.leaderboards import Leaderboard, is_costly
from bench.store import CellRow, ExamplesRow, Store

Bits = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Items = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AttackResult:
    """One attack against one defense over all its seeds and targets. Arrays are [n]."""

    evaluated: Bits
    """Whether the attack ran on the example, with all targets; a cascade leaves out those that an
    earlier attack broke."""
    broken: Bits
    broken_8bit: Bits
    """Still broken after rounding to 8 bits."""
    step: Floats
    """Steps within the restart of the first success; inf where the example is unbroken."""
    total_steps: Floats
    """Steps of that restart and of all earlier ones; inf where the example is unbroken."""
    forwards: Floats
    """Queries up to the first success; inf where the example is unbroken."""
    distance: Floats
    """Of the nearest adversarial example, also beyond the radius where the goal is `nearest`; inf
    without one."""
    scores: RejectionScores
    """Rejection scores of its candidates, by item."""


@dataclass(frozen=True)
class DefenseResult:
    """One defense on one leaderboard."""

    defense: str
    digest: str
    examples: str
    """Digest of the examples it was evaluated on: the leaderboard's, or the first few of them."""
    clean: Bits
    """[n]: right on the clean image; False everywhere until the clean pass is done."""
    has_clean_pass: bool
    clean_scores: RejectionScores
    """Rejection scores of the clean images, where the defense rejects."""
    attacks: Mapping[str, AttackResult]
    """By attack, where at least one cell is done."""
    tier: str

    def robust(self, attacks: Iterable[str] | None = None) -> Bits:
        """[n]: right on the clean image and broken by none of the attacks (None: of all)."""
        names = self.attacks if attacks is None else attacks
        return self._except(self.attacks[name].broken for name in names if name in self.attacks)

    def decided_by(self, attacks: Iterable[str]) -> bool:
        """Whether these attacks alone decide which examples are robust.

        In a cascade they do not, where another attack broke an example before they ran on it.
        """
        done = [name for name in attacks if name in self.attacks]
        evaluated = np.ones(len(self.clean), np.bool_)
        for name in done:
            evaluated &= self.attacks[name].evaluated
        return bool((evaluated | ~self.robust(done)).all())

    def robust_8bit(self) -> Bits:
        """[n]: right, and broken by no adversarial example that survives rounding to 8 bits."""
        return self._except(attack.broken_8bit for attack in self.attacks.values())

    def broken_by(self, attacks: Iterable[str]) -> Bits:
        """[n]: right on the clean image and broken by one of the attacks."""
        return self.clean & ~self.robust(attacks)

    def strongest_attack(self, attacks: Iterable[str] | None = None) -> str | None:
        """The attack that leaves the fewest examples right; None where none is done."""
        names = sorted(self.attacks if attacks is None else set(attacks) & set(self.attacks))
        return min(names, key=lambda name: int(self.robust([name]).sum()), default=None)

    def _except(self, broken: Iterable[Bits]) -> Bits:
        right = self.clean.copy()
        for bits in broken:
            right &= ~bits
        return right


@dataclass(frozen=True)
class LeaderboardResults:
    """The results of all defenses on one leaderboard."""

    leaderboard: Leaderboard
    attack_cards: Mapping[str, AttackCard]
    """Current attacks by name."""
    defense_cards: Mapping[str, DefenseCard]
    """Current defenses by name."""
    cells: Mapping[tuple[str, str], tuple[CellRow, ...]]
    """Current cells by (defense, attack), sorted, the clean passes included."""
    defenses: Mapping[str, DefenseResult]
    """By defense, for all that have a cell of an attack."""
    outdated: Mapping[tuple[str, str], str]
    """What has changed, by (defense, attack) with an older finished cell and no current one."""
    digest: str
    """SHA-256 over the verdict of every item; independent of the order of evaluation."""


def load_results(store: Store, leaderboard: Leaderboard) -> LeaderboardResults:
    """Read one leaderboard; the outcomes of each done cell are read once."""
    attacks = {card.name: card for card in store.cards(AttackCard)}
    rows = sorted(_rows(store, leaderboard), key=_sort_key)
    defenses = {
        card.name: card.model_copy(
            update={"digest": defense_digest(card, leaderboard.dataset, rows)}
        )
        for card in store.cards(DefenseCard)
    }
    now = CurrentDigests(
        {name: card.digest for name, card in defenses.items()}, attack_digests(attacks.values())
    )
    cells = _current(rows, leaderboard, now)
    outcomes = {
        row.key: store.outcomes(row.key)
        for rows in cells.values()
        for row in rows
        if row.state == CellState.DONE
    }
    names = sorted({defense for defense, attack in cells if attack != CLEAN})
    results = {}
    for name in names:
        (digest,) = {
            row.cell.examples for pair, rows in cells.items() if pair[0] == name for row in rows
        }
        examples = store.examples(digest)
        results[name] = _defense_result(
            leaderboard, examples, defenses[name], attacks, cells, outcomes
        )
    kept = {pair: rows for pair, rows in cells.items() if pair[0] in results}
    outdated = _outdated(rows, leaderboard, now, cells)
    return LeaderboardResults(
        leaderboard,
        attacks,
        defenses,
        kept,
        results,
        outdated,
        _digest(leaderboard, kept, outcomes),
    )


def _rows(store: Store, leaderboard: Leaderboard) -> list[CellRow]:
    """The cells on the leaderboard's examples, and those of costly defenses on the first few."""
    own = store.cells(examples=leaderboard.examples)
    here = {row.cell.defense for row in own if row.cell.threat_id == leaderboard.id}
    costly = {card.name for card in store.cards(DefenseCard) if is_costly(card)} - here
    costly_rows = _rows_on_few_examples(store, leaderboard, costly) if costly else []
    listed = {row.cell.defense for row in costly_rows if row.cell.threat_id == leaderboard.id}
    kept = [row for row in own if row.cell.defense not in listed]
    return kept + [row for row in costly_rows if row.cell.defense in listed]


def _rows_on_few_examples(
    store: Store, leaderboard: Leaderboard, costly: Collection[str]
) -> list[CellRow]:
    """The cells of costly defenses on the first few examples of the leaderboard's data set."""
    rows = [row for row in store.cells() if row.cell.defense in costly]
    examples = {row.cell.examples: store.examples(row.cell.examples) for row in rows}
    few = {
        digest
        for digest, row in examples.items()
        if row.dataset == leaderboard.dataset and row.n == FEW_EXAMPLES < leaderboard.n
    }
    return [row for row in rows if row.cell.examples in few]


def _current(
    rows: Iterable[CellRow], leaderboard: Leaderboard, now: CurrentDigests
) -> dict[tuple[str, str], tuple[CellRow, ...]]:
    kept = [row for row in rows if _is_here(row, leaderboard) and not now.change(row)]
    found: dict[tuple[str, str], tuple[CellRow, ...]] = {}
    for row in _whole_cascades(kept):
        pair = row.cell.defense, row.cell.attack
        found[pair] = (*found.get(pair, ()), row)
    return found


def _whole_cascades(rows: list[CellRow]) -> list[CellRow]:
    """The cells whose predecessors are all done: only then are the survivors known."""
    done = {row.key: row.cell.before for row in rows if row.state == CellState.DONE}

    def whole(before: str) -> bool:
        return not before or (before in done and whole(done[before]))

    return [row for row in rows if whole(row.cell.before)]


def _is_here(row: CellRow, leaderboard: Leaderboard) -> bool:
    return row.cell.attack == CLEAN or (
        row.cell.threat_id == leaderboard.id and row.cell.mode == leaderboard.mode
    )


def _outdated(
    rows: Iterable[CellRow],
    leaderboard: Leaderboard,
    now: CurrentDigests,
    current: Collection[tuple[str, str]],
) -> dict[tuple[str, str], str]:
    """What has changed since a cell was evaluated, by pairs that have no current cell.

    A cell that is itself current follows one in its cascade that is not.
    """
    done = [row for row in rows if row.state == CellState.DONE and _is_here(row, leaderboard)]
    return {
        (row.cell.defense, row.cell.attack): now.change(row) or "an attack before it in the cascade"
        for row in sorted(done, key=lambda row: row.updated)
        if (row.cell.defense, row.cell.attack) not in current
    }


def _sort_key(row: CellRow) -> tuple[str, str, int, str, str]:
    return row.cell.defense, row.cell.attack, row.cell.seed, row.cell.numeric, row.key


def _defense_result(
    leaderboard: Leaderboard,
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
        clean=_clean_right(examples.n, passes),
        has_clean_pass=bool(passes),
        clean_scores=_scores(examples, passes),
        attacks={
            attack: _attack_result(leaderboard, examples, steps_of(attacks[attack]), parts)
            for attack, parts in done.items()
            if parts
        },
        tier=", ".join(sorted(tiers)),
    )


def steps_of(attack: AttackCard) -> int:
    """Steps of one restart; 0 for an external attack."""
    return attack.steps or 0


def _clean_right(n: int, passes: list[Outcomes]) -> Bits:
    right = np.full(n, bool(passes))
    for outcome in passes:
        robust = np.zeros(n, np.bool_)
        robust[outcome.item] = outcome.verdict == Verdict.ROBUST
        right &= robust
    return right


def _scores(examples: ExamplesRow, passes: list[Outcomes]) -> RejectionScores:
    """Scores of the first clean pass; all seeds give the same unless the detector is random."""
    made = passes[0] if passes else Outcomes.concatenate([])
    return rejection_scores(made, examples.labels[made.item], clean=True)


def _attack_result(
    leaderboard: Leaderboard, examples: ExamplesRow, steps: int, parts: list[Outcomes]
) -> AttackResult:
    made = Outcomes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    per_example = len(examples.classes) - 1 if leaderboard.has_all_targets else 1
    n, example = examples.n, made.item // per_example
    broken = made.verdict == Verdict.BROKEN
    wrong = broken | (_answered_wrong(made, examples.labels[example]) & leaderboard.is_nearest)
    return AttackResult(
        evaluated=_all(n, per_example, made.item),
        broken=_any(n, example, broken),
        broken_8bit=_any(n, example, broken & made.eight_bit),
        step=_least(n, example, made.step, broken),
        total_steps=_least(n, example, made.restart * steps + made.step, broken),
        forwards=_least(n, example, made.forwards, broken),
        distance=_least(n, example, made.distance, wrong),
        scores=rejection_scores(made, examples.labels[example]),
    )


def _answered_wrong(made: Outcomes, truth: npt.NDArray[np.int16]) -> Bits:
    """Beyond the radius the verdict is `robust` whatever the label; label and score decide."""
    accepted = (made.label >= 0) & (made.rejection <= 0)
    wrong: Bits = (made.verdict == Verdict.ROBUST) & accepted & (made.label != truth)
    return wrong


def _any(n: int, example: Items, flags: Bits) -> Bits:
    """[n]: whether the flag is set for any item of the example."""
    found = np.zeros(n, np.bool_)
    found[example[flags]] = True
    return found


def _all(n: int, per_example: int, items: Items) -> Bits:
    """[n]: whether all items of the example are among these."""
    evaluated = np.zeros(n * per_example, np.bool_)
    evaluated[items] = True
    return np.asarray(evaluated.reshape(n, per_example).all(1))


def _least(n: int, example: Items, values: npt.NDArray[np.generic], where: Bits) -> Floats:
    """[n]: the smallest value among the example's items, inf where there is none."""
    least = np.full(n, np.inf)
    np.minimum.at(least, example[where], values[where].astype(np.float64))
    return least


def _digest(
    leaderboard: Leaderboard,
    cells: Mapping[tuple[str, str], tuple[CellRow, ...]],
    outcomes: Mapping[str, Outcomes],
) -> str:
    sha = hashlib.sha256(canonical([leaderboard.id, leaderboard.examples]).encode())
    for pair, rows in cells.items():
        for row in rows:
            if row.key in outcomes:
                found = outcomes[row.key]
                sha.update(canonical([*pair, row.cell.seed, row.cell.items]).encode())
                sha.update(found.item.astype("<i4").tobytes())
                sha.update(found.verdict.tobytes())
    return sha.hexdigest()
