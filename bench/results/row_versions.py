"""Which versions of code a row shows, where the database has cells of several.

A row shows the newest version of its defense, and of it the newest set of attack versions, that
covers what the protocol requires. Newer results that do not cover it yet are named and hide
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.core.cards import AttackCard, DefenseCard
from bench.core.cells import CLEAN, PROTOCOL, CellState
from bench.core.protocols import DECLARED
from bench.results.current_cells import attack_digests, defense_digest
from bench.results.leaderboards import Leaderboard
from bench.store import CellRow, Store

Digests = Mapping[str, str]
"""Attack -> digest."""
Cells = dict[str, tuple[CellRow, ...]]
"""Attack, or the clean pass -> its cells."""


@dataclass(frozen=True)
class History:
    """The versions of the plugins of one leaderboard, as far as the database knows them."""

    leaderboard: Leaderboard
    attacks: Mapping[str, AttackCard]
    """Current attacks."""
    defenses: Mapping[str, DefenseCard]
    """Current defenses, each with its digest on the leaderboard's data set."""
    older_sets: tuple[Digests, ...]
    """Sets of attack digests that belonged together, the newest first."""

    @classmethod
    def load(cls, store: Store, leaderboard: Leaderboard, rows: Iterable[CellRow]) -> History:
        """Read the versions; `rows` are the cells on the leaderboard's data set."""
        known = list(rows)

        def built(card: DefenseCard) -> DefenseCard:
            own = defense_digest(card, leaderboard.dataset, known)
            return card.model_copy(update={"digest": own})

        return cls(
            leaderboard,
            {card.name: card for card in store.cards(AttackCard)},
            {card.name: built(card) for card in store.cards(DefenseCard)},
            tuple(versions.digests for versions in store.attack_versions()),
        )

    @cached_property
    def current(self) -> Digests:
        """The digests of the current attacks."""
        return attack_digests(self.attacks.values())

    @cached_property
    def sets(self) -> tuple[Digests, ...]:
        """The current set and the older ones."""
        return (self.current, *self.older_sets)

    def role(self, attack: str) -> str:
        """The role of the surrogate that an attack queries; empty where it queries the defense."""
        return self.attacks[attack].source

    def surrogate(self, role: str, defense: str) -> str:
        """The current digest of a role's surrogate; empty where it is not known."""
        named = self.leaderboard.protocol.surrogates.get(role, "")
        name = self.defenses[defense].surrogate if role == DECLARED else named
        return self.defenses[name].digest if name in self.defenses else ""

    def is_current(self, row: CellRow) -> bool:
        """Whether a cell was evaluated with the current attack and, if known, surrogate."""
        wanted = self.surrogate(self.role(row.cell.attack), row.cell.defense)
        same = row.cell.attack_digest == self.current[row.cell.attack]
        return same and row.cell.source_digest in (wanted or row.cell.source_digest, "")


@dataclass(frozen=True)
class ShownRow:
    """The cells of one defense that a leaderboard shows."""

    digest: str
    """Digest of the defense."""
    cells: Mapping[str, tuple[CellRow, ...]]
    """By attack, the clean pass included."""


def shown_rows(
    history: History, rows: Iterable[CellRow], *, current_only: bool = False
) -> dict[str, ShownRow]:
    """The cells that a leaderboard shows of each defense, by defense.

    Args:
        history: the versions of the plugins.
        rows: all cells of the leaderboard, in the order in which they are to be.
        current_only: leave out all cells of older versions, as the planning of a run does.
    """
    by_defense: dict[str, list[CellRow]] = {}
    for row in rows:
        if row.cell.protocol == PROTOCOL and _is_known(history, row):
            by_defense.setdefault(row.cell.defense, []).append(row)
    return {
        name: (_current_row if current_only else _newest_row)(history, history.defenses[name], mine)
        for name, mine in by_defense.items()
    }


def _is_known(history: History, row: CellRow) -> bool:
    known = row.cell.attack == CLEAN or row.cell.attack in history.attacks
    return known and row.cell.defense in history.defenses


def _current_row(history: History, defense: DefenseCard, mine: Sequence[CellRow]) -> ShownRow:
    kept = _of_digest(mine, defense.digest)
    return ShownRow(defense.digest, _by_attack(_of_set(history, kept, history.current)))


def _newest_row(history: History, defense: DefenseCard, mine: Sequence[CellRow]) -> ShownRow:
    """The newest complete row; without one, the newest of which an attack is done."""
    select = _cascade_cells if history.leaderboard.mode != "full" else _full_cells
    digests = [defense.digest, *older_digests(defense.digest, mine)]
    for digest in digests:
        cells = select(history, defense, _of_digest(mine, digest))
        if cells is not None:
            return ShownRow(digest, cells)
    done = [digest for digest in digests if _evaluated(_of_digest(mine, digest))]
    digest = (done or digests)[0]
    kept = _of_digest(mine, digest)
    if history.leaderboard.mode != "full":
        current = _by_attack(_of_set(history, kept, history.current))
        newest = _by_attack(_of_set(history, kept, _last_cascade(kept)))
        return ShownRow(digest, current if set(current) - {CLEAN} else newest)
    return ShownRow(digest, _mixed_cells(history, kept))


def older_digests(current: str, mine: Iterable[CellRow]) -> list[str]:
    """The other digests of a defense with a finished attack, the newest first."""
    last: dict[str, float] = {}
    for row in _evaluated(mine):
        last[row.cell.defense_digest] = max(row.updated, last.get(row.cell.defense_digest, 0.0))
    return sorted(set(last) - {current}, key=lambda digest: -last[digest])


def _full_cells(history: History, defense: DefenseCard, mine: Sequence[CellRow]) -> Cells | None:
    """The cells of the newest set that covers the protocol; None where none does.

    Where no set does, each attack in its newest version may: of a database from before sets were
    kept, and where the newest sets share the required attacks between them.
    """
    by_attack = _by_attack(mine)
    for digests in history.sets:
        sources = _covering(history, defense, by_attack, digests)
        if sources is not None and _is_evaluated(mine):
            return {a: _choose(history, a, rows, digests, sources) for a, rows in by_attack.items()}
    mixed = _mixed_cells(history, mine)
    covers = all(
        any(map(is_done, mixed.get(attack, ())))
        for attack in history.leaderboard.required
        if applies(mixed.get(attack, ()), history.attacks.get(attack), defense)
    )
    return mixed if covers and _is_evaluated(mine) else None


def _covering(
    history: History,
    defense: DefenseCard,
    by_attack: Mapping[str, Sequence[CellRow]],
    digests: Digests,
) -> dict[str, str] | None:
    """Role -> digest of the surrogate with which all required attacks of the role are done.

    None where one is not done in its version of the set.
    """
    cells: dict[str, list[list[CellRow]]] = {}
    for attack in history.leaderboard.required:
        rows = by_attack.get(attack, ())
        exact = [row for row in rows if row.cell.attack_digest == digests.get(attack)]
        if not applies(exact or rows, history.attacks.get(attack), defense):
            continue
        if attack not in history.attacks:
            return None
        cells.setdefault(history.role(attack), []).append([row for row in exact if is_done(row)])
    chosen = {}
    for role, done in cells.items():
        common = set.intersection(*({row.cell.source_digest for row in rows} for rows in done))
        shared = [row for rows in done for row in rows if row.cell.source_digest in common]
        if not shared:
            return None
        chosen[role] = _newest_source(history, shared)
    return chosen


def _newest_source(history: History, rows: Sequence[CellRow]) -> str:
    """The surrogate of the current cells among these, else of the newest one."""
    newest = max(rows, key=lambda row: (history.is_current(row), row.updated))
    return newest.cell.source_digest


def _choose(
    history: History,
    attack: str,
    rows: Sequence[CellRow],
    digests: Digests,
    sources: Mapping[str, str],
) -> tuple[CellRow, ...]:
    """The cells of one attack: of the set's version, else of the newest that is done.

    With them come the unfinished cells of the same version. Where no version is done, those of the
    current one, or the newest where the attack did not apply.
    """
    if attack == CLEAN:
        return tuple(rows)
    done = [row for row in rows if is_done(row)]
    if not done:
        current = [row for row in rows if row.cell.attack_digest == history.current[attack]]
        newest = max(rows, key=lambda row: row.updated)
        skipped = newest.state == CellState.NOT_APPLICABLE
        return tuple(current) or ((newest,) if skipped else ())
    source = sources.get(history.role(attack))

    def fit(row: CellRow) -> tuple[bool, bool, bool, float]:
        of_set = row.cell.attack_digest == digests.get(attack)
        return of_set, row.cell.source_digest == source, history.is_current(row), row.updated

    best = max(done, key=fit).cell
    return tuple(
        row
        for row in rows
        if row.cell.attack_digest == best.attack_digest
        and (not is_done(row) or row.cell.source_digest == best.source_digest)
    )


def _mixed_cells(history: History, mine: Sequence[CellRow]) -> Cells:
    """The cells of each attack in the current version if that is done, else in the newest."""
    found = {
        attack: _choose(history, attack, rows, history.current, {})
        for attack, rows in _by_attack(mine).items()
    }
    return {attack: rows for attack, rows in found.items() if rows}


def _cascade_cells(history: History, defense: DefenseCard, mine: Sequence[CellRow]) -> Cells | None:
    """The cells of the newest set whose cascade covers the protocol; None where none does."""
    for digests in (*history.sets, _last_cascade(mine)):
        found = _by_attack(_of_set(history, mine, digests))
        required = [
            found.get(attack, ())
            for attack in history.leaderboard.required
            if applies(found.get(attack, ()), history.attacks.get(attack), defense)
        ]
        rows = [row for some in found.values() for row in some]
        if _is_evaluated(rows) and all(any(map(is_done, some)) for some in required):
            return found
    return None


def _last_cascade(mine: Sequence[CellRow]) -> Digests:
    """The digests of the attacks in the cascade that was evaluated last."""
    by_key = {row.key: row for row in mine if is_done(row) and row.cell.attack != CLEAN}
    newest = max(by_key.values(), key=lambda row: row.updated, default=None)
    found = {}
    while newest is not None:
        found[newest.cell.attack] = newest.cell.attack_digest
        newest = by_key.get(newest.cell.before)
    return found


def _of_set(history: History, rows: Iterable[CellRow], digests: Digests) -> list[CellRow]:
    """The cells of a set of attack versions, and in a cascade only those whose survivors are known.

    Survivors are known where all cells before are of the set, too, and done.
    """
    kept = [
        row
        for row in rows
        if row.cell.attack == CLEAN or digests.get(row.cell.attack) == row.cell.attack_digest
    ]
    before = {row.key: row.cell.before for row in kept if is_done(row)}

    def whole(key: str) -> bool:
        return not key or (key in before and whole(before[key]))

    return [row for row in kept if whole(row.cell.before)]


def applies(rows: Sequence[CellRow], attack: AttackCard | None, defense: DefenseCard) -> bool:
    """Whether an attack applies to a defense, of which these are the cells of one version.

    One that was never planned does, unless it attacks a detector that is missing.
    """
    if rows or attack is None:
        return {row.state for row in rows} != {CellState.NOT_APPLICABLE}
    return defense.rejects is not None or not attack.joint


def is_done(row: CellRow) -> bool:
    """Whether a cell is finished and has figures."""
    return row.state == CellState.DONE


def _is_evaluated(rows: Iterable[CellRow]) -> bool:
    """Whether the clean pass and an attack are done."""
    done = {row.cell.attack for row in rows if is_done(row)}
    return CLEAN in done and len(done) > 1


def _evaluated(rows: Iterable[CellRow]) -> list[CellRow]:
    return [row for row in rows if is_done(row) and row.cell.attack != CLEAN]


def _of_digest(rows: Iterable[CellRow], digest: str) -> list[CellRow]:
    return [row for row in rows if row.cell.defense_digest == digest]


def _by_attack(rows: Iterable[CellRow]) -> Cells:
    return _grouped(rows, lambda row: row.cell.attack)


def _grouped(rows: Iterable[CellRow], key: Callable[[CellRow], str]) -> Cells:
    found: Cells = {}
    for row in rows:
        found[key(row)] = (*found.get(key(row), ()), row)
    return found
