"""Results per example of the cells that a leaderboard shows: the arrays behind every figure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.core.cards import AttackCard, DefenseCard
from bench.core.cells import CLEAN, CellState
from bench.core.fitted import FittedPoint
from bench.core.hashing import canonical
from bench.core.machines import Machine
from bench.core.outcomes import (
    NO_ANSWER,
    TRUE_GRADIENT_RESTART,
    Outcomes,
    Refusals,
    Verdict,
    refusals,
)
from bench.core.variant_names import variant_order
from bench.results.detection import RejectionScores, rejection_scores
from bench.results.leaderboard_cells import is_here, leaderboard_cells, outdated_cells
from bench.results.leaderboards import Leaderboard
from bench.results.row_versions import History, ShownRow, shown_rows
from bench.results.second_evaluations import SecondEvaluation, second_evaluations
from bench.results.target_pairs import TargetPairs, target_pairs
from bench.results.true_class import TrueClass, true_class
from bench.results.version_notes import RowVersions, cell_notes, row_versions
from bench.store import CellRow, ExamplesRow, Store

Bits = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Items = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AttackResult:
    """One attack against one defense over all its seeds and targets. Arrays are [n]."""

    card: AttackCard
    """The attack as it was when it was evaluated."""
    version: str
    """Digests of the attack and of the public surrogate that it queries."""
    evaluated: Bits
    """Whether the attack ran on the example, with all targets; a cascade leaves out those that an
    earlier attack broke."""
    broken: Bits
    broken_8bit: Bits
    """Still broken after rounding to 8 bits."""
    step: Floats
    """Steps within the restart of the first success; inf where the example is unbroken."""
    total_steps: Floats
    """Steps of that restart and of all earlier ones with the same gradient; inf where the example
    is unbroken."""
    forwards: Floats
    """Queries up to the first success; inf where the example is unbroken."""
    distance: Floats
    """Of the nearest adversarial example, also beyond the radius where the goal is `nearest`; inf
    without one."""
    scores: RejectionScores
    """Rejection scores of its candidates, by item."""
    refusals: Refusals
    true_class: TrueClass
    """On the worst admissible candidate of each example."""
    target_pairs: TargetPairs
    by_true_gradient: Bits
    """Broken by the true gradient, where the BPDA approximation that is declared had failed."""
    changed: Bits
    """Whether the predicted class of the last candidate is not that of the clean image."""
    unconfirmed: Bits
    """Claimed as broken, which the referee's votes over new draws did not confirm."""
    left_out: Bits
    """Whether the attack leaves the example out, because it runs on the first few only."""


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
    clean_class: TrueClass
    """The true class on the clean images."""
    labels: npt.NDArray[np.int16]
    """[n]: true classes."""
    classes: tuple[str, ...]
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
            evaluated &= self.attacks[name].evaluated | self.attacks[name].left_out
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
    """Shown cells by (defense, attack), sorted, the clean passes included."""
    defenses: Mapping[str, DefenseResult]
    """By defense, for all that have a cell of an attack."""
    outdated: Mapping[tuple[str, str], str]
    """What has changed, by (defense, attack) with an older finished cell and none that is shown."""
    digest: str
    """SHA-256 over the verdict of every item; independent of the order of evaluation."""
    machines: Mapping[str, tuple[Machine, ...]]
    """The machine classes that computed a cell, by its key; cells that are not shown are absent."""
    versions: Mapping[str, RowVersions]
    """By defense, where the database has cells of other versions of it or of attacks."""
    older: Mapping[tuple[str, str], str]
    """Sentence on the shown cell of (defense, attack), where it is of an older version."""
    fits: Mapping[str, FittedPoint]
    """The fitted point of a cell, by its key; cells of attacks with many points are absent."""
    second: Mapping[str, tuple[SecondEvaluation, ...]]
    """The second evaluations of a cell, by its key; oldest first, and absent without any."""


def load_results(
    store: Store, leaderboard: Leaderboard, *, current_only: bool = False
) -> LeaderboardResults:
    """Read one leaderboard; the outcomes of each cell that is shown are read once.

    `current_only` leaves out the results of older versions (`bench.results.row_versions`).
    """
    rows = leaderboard_cells(store, leaderboard)
    history = History.load(store, leaderboard, rows)
    here = [row for row in rows if is_here(row, leaderboard)]
    evaluated = {row.cell.defense for row in here if row.cell.attack != CLEAN}
    found = shown_rows(history, here, current_only=current_only)
    names = sorted(name for name in evaluated & set(found) if set(found[name].cells) - {CLEAN})
    shown = {name: found[name] for name in names}
    cells = {
        (name, attack): row.cells[attack]
        for name, row in shown.items()
        for attack in sorted(row.cells, key=variant_order)
    }
    outcomes = {
        row.key: store.outcomes(row.key)
        for rows in cells.values()
        for row in rows
        if row.state == CellState.DONE
    }
    older = store.older_attacks() if _has_older(history, cells.values()) else {}
    results = {
        name: _defense_result(store, history, older, name, row, outcomes)
        for name, row in shown.items()
    }
    mine = {name: [row for row in here if row.cell.defense == name] for name in shown}
    return LeaderboardResults(
        leaderboard,
        history.attacks,
        history.defenses,
        cells,
        results,
        outdated_cells(history, here, cells),
        _digest(leaderboard, cells, outcomes),
        store.machines(outcomes),
        {n: v for n, r in shown.items() if (v := row_versions(history, mine[n], r, n))},
        {(n, a): t for n, r in shown.items() for a, t in cell_notes(history, mine[n], r).items()},
        store.fits(outcomes),
        second_evaluations(store, outcomes),
    )


def _has_older(history: History, cells: Iterable[Sequence[CellRow]]) -> bool:
    """Whether a cell of another version than the current attack is shown."""
    return any(
        row.cell.attack != CLEAN and row.cell.attack_digest != history.current[row.cell.attack]
        for rows in cells
        for row in rows
    )


def _card(history: History, older: Mapping[str, AttackCard], row: CellRow) -> AttackCard:
    """The card of the attack as it was; of one that was not kept the number of steps is unknown."""
    current = history.attacks[row.cell.attack]
    if row.cell.attack_digest == current.digest:
        return current
    kept = older.get(row.cell.attack_digest)
    return kept or current.model_copy(update={"steps": None})


def _version(leaderboard: Leaderboard, card: AttackCard, row: CellRow) -> str:
    public = card.source in leaderboard.protocol.surrogates
    return f"{row.cell.attack_digest} {row.cell.source_digest if public else ''}"


def _defense_result(
    store: Store,
    history: History,
    older: Mapping[str, AttackCard],
    name: str,
    shown: ShownRow,
    outcomes: Mapping[str, Outcomes],
) -> DefenseResult:
    leaderboard = history.leaderboard
    rows = [row for some in shown.cells.values() for row in some]
    (digest,) = {row.cell.examples for row in rows}
    examples = store.examples(digest)
    finished = {
        attack: [row for row in some if row.key in outcomes] for attack, some in shown.cells.items()
    }
    passes = [outcomes[row.key] for row in finished.pop(CLEAN, [])]
    attacks = {}
    for attack, done in finished.items():
        if done:
            card = _card(history, older, done[0])
            parts = [outcomes[row.key] for row in done]
            version = _version(leaderboard, card, done[0])
            attacks[attack] = _attack_result(leaderboard, examples, card, version, parts, passes)
    return DefenseResult(
        defense=name,
        digest=shown.digest,
        examples=examples.digest,
        clean=_clean_right(examples.n, passes),
        has_clean_pass=bool(passes),
        clean_scores=_scores(examples, passes),
        clean_class=true_class(examples.n, Outcomes.concatenate(passes)),
        labels=examples.labels,
        classes=examples.classes,
        attacks=attacks,
        tier=", ".join(sorted({row.tier for row in rows})),
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
    leaderboard: Leaderboard,
    examples: ExamplesRow,
    attack: AttackCard,
    version: str,
    parts: list[Outcomes],
    passes: list[Outcomes],
) -> AttackResult:
    made = Outcomes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    per_example = len(examples.classes) - 1 if leaderboard.has_all_targets else 1
    n, example = examples.n, made.item // per_example
    broken = made.verdict == Verdict.BROKEN
    wrong = broken | (_answered_wrong(made, examples.labels[example]) & leaderboard.is_nearest)
    return AttackResult(
        card=attack,
        version=version,
        evaluated=_all(n, per_example, made.item),
        broken=_any(n, example, broken),
        broken_8bit=_any(n, example, broken & made.eight_bit),
        step=_least(n, example, made.step, broken),
        total_steps=_least(n, example, _total_steps(made, attack), broken),
        forwards=_least(n, example, made.forwards, broken),
        distance=_least(n, example, made.distance, wrong),
        scores=rejection_scores(made, examples.labels[example]),
        refusals=refusals(made),
        true_class=true_class(n, made, example),
        target_pairs=target_pairs(
            made, example, examples.labels, len(examples.classes), leaderboard.goal
        ),
        by_true_gradient=_any(n, example, broken & (made.restart >= TRUE_GRADIENT_RESTART)),
        changed=_any(n, example, _changed(made, example, passes)),
        unconfirmed=_any(n, example, (made.claimed == 1) & (made.verdict == Verdict.ROBUST)),
        left_out=np.arange(n) >= (attack.examples or n),
    )


def _total_steps(made: Outcomes, attack: AttackCard) -> npt.NDArray[np.int32]:
    """[items]: steps before the first success, those of earlier restarts included."""
    return made.restart % TRUE_GRADIENT_RESTART * steps_of(attack) + made.step


def _answered_wrong(made: Outcomes, truth: npt.NDArray[np.int16]) -> Bits:
    """Beyond the radius the verdict is `robust` whatever the label; label and score decide."""
    accepted = (made.label >= 0) & (made.rejection <= 0)
    wrong: Bits = (made.verdict == Verdict.ROBUST) & accepted & (made.label != truth)
    return wrong


def _changed(made: Outcomes, example: Items, passes: list[Outcomes]) -> Bits:
    """[items]: another class than that of the clean image is predicted."""
    if not passes or not len(example):
        return np.zeros(len(example), np.bool_)
    clean = np.full(max(int(passes[0].item.max()), int(example.max())) + 1, NO_ANSWER, np.int16)
    clean[passes[0].item] = passes[0].label
    different: Bits = made.label != clean[example]
    return different


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
