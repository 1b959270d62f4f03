"""What a row states about its versions, where the database has cells of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bench.core.cells import CLEAN, CellState
from bench.results.row_versions import History, ShownRow, applies, is_done, older_digests
from bench.store import CellRow

SHORT = 12
"""Characters of a digest in a sentence."""
NAMED = 5
"""Attacks that a sentence names."""


@dataclass(frozen=True)
class RowVersions:
    """The versions that a row shows, and what the database has of others."""

    date: str
    """Day (UTC) of the newest cell that is shown."""
    defense: str
    """Digest of the defense."""
    attacks: Mapping[str, str]
    """Required attack -> digest."""
    older: bool
    """Whether a newer version of the defense or of one of its attacks is not shown."""
    sentences: tuple[str, ...]


def row_versions(
    history: History, mine: Sequence[CellRow], shown: ShownRow, defense: str
) -> RowVersions | None:
    """The versions of a row; None where the database has no other ones.

    `mine` are all cells of the defense on the leaderboard.
    """
    about_defense = _defense_sentences(history, mine, shown, defense)
    sentences = (*about_defense, *_attacks(history, mine, shown))
    if not sentences:
        return None
    cells = {attack: [r for r in rows if is_done(r)] for attack, rows in shown.cells.items()}
    required = [attack for attack in history.leaderboard.required if cells.get(attack)]
    return RowVersions(
        _day(row for rows in cells.values() for row in rows),
        shown.digest,
        {attack: cells[attack][0].cell.attack_digest for attack in required},
        shown.digest != history.defenses[defense].digest or bool(older_attacks(history, shown)),
        sentences,
    )


def _attacks(history: History, mine: Sequence[CellRow], shown: ShownRow) -> tuple[str, ...]:
    """The sentence on attacks that are shown in an older version; empty without one."""
    older = older_attacks(history, shown)
    if not older:
        return ()
    others = [row for row in mine if row.cell.defense_digest == shown.digest and is_done(row)]
    required = _required(history, mine, shown.digest)
    newer = sum(_has_newer(shown.cells.get(a, ()), others, a) for a in required)
    names = ", ".join(older[:NAMED]) + (f" and {len(older) - NAMED} more" * (len(older) > NAMED))
    day = _day(row for attack in older for row in shown.cells[attack] if is_done(row))
    return (
        f"Shown as evaluated until {day} with an older version of {names}; {newer} of"
        f" {len(required)} required attacks evaluated with newer code.",
    )


def older_attacks(history: History, shown: ShownRow) -> list[str]:
    """The attacks whose results are of an older version of the attack or its surrogate."""
    return [
        attack
        for attack, rows in shown.cells.items()
        if attack != CLEAN
        and any(map(is_done, rows))
        and not any(history.is_current(row) for row in rows if is_done(row))
    ]


def _has_newer(shown: Sequence[CellRow], others: Iterable[CellRow], attack: str) -> bool:
    """Whether an attack is done in a version that came after the one that is shown."""
    last = max((row.updated for row in shown if is_done(row)), default=0.0)
    keys = {row.key for row in shown}
    return any(
        row.cell.attack == attack and row.key not in keys and row.updated >= last for row in others
    )


def _defense_sentences(
    history: History, mine: Sequence[CellRow], shown: ShownRow, defense: str
) -> list[str]:
    """One sentence for each other version of the defense that the leaderboard has cells of."""
    current = history.defenses[defense].digest
    digests = [current, *older_digests(current, mine)]
    if shown.digest == current and len(digests) == 1:
        return []
    last = _day(row for rows in shown.cells.values() for row in rows if is_done(row))
    sentences = []
    if shown.digest != current:
        sentences.append(
            f"Shown with version {shown.digest[:SHORT]} of the defense, evaluated until {last};"
            f" of its present version {_progress(history, mine, current)}."
        )
    return sentences + [
        f"Its version {digest[:SHORT]} is not shown: of it {_progress(history, mine, digest)}."
        for digest in digests
        if digest not in (shown.digest, current)
    ]


def _progress(history: History, mine: Sequence[CellRow], digest: str) -> str:
    """How many required attacks of one version of a defense are done, until when, and failures."""
    required = _required(history, mine, digest)
    rows = [row for row in mine if row.cell.defense_digest == digest]
    done = [row for row in rows if is_done(row)]
    count = len({row.cell.attack for row in done} & set(required))
    text = f"{count} of {len(required)} required attacks are evaluated"
    text += f", until {_day(done)}" if count else ""
    failed = next((row.reason.rstrip(".") for row in rows if row.state == CellState.FAILED), "")
    return f"{text}; it failed: {failed}" if failed else text


def _required(history: History, mine: Sequence[CellRow], digest: str) -> list[str]:
    """The required attacks that apply to one version of a defense."""
    rows = [row for row in mine if row.cell.defense_digest == digest]
    own = {a: [row for row in rows if row.cell.attack == a] for a in history.leaderboard.required}
    name = next((row.cell.defense for row in mine), "")
    return [a for a in own if applies(own[a], history.attacks.get(a), history.defenses[name])]


def cell_notes(history: History, mine: Sequence[CellRow], shown: ShownRow) -> dict[str, str]:
    """Attack -> sentence on a finished cell that the present version has not replaced."""
    notes = {}
    for attack in older_attacks(history, shown):
        done = [row for row in shown.cells[attack] if is_done(row)]
        note = f"Evaluated on {_day(done)} with an older version of the attack or its surrogate."
        failed = [
            row.reason
            for row in mine
            if row.cell.attack == attack
            and row.cell.defense_digest == shown.digest
            and row.state == CellState.FAILED
            and row.key not in {one.key for one in shown.cells[attack]}
        ]
        notes[attack] = f"{note} With the present one it failed: {failed[-1]}" if failed else note
    return notes


def apart_sentence(apart: Mapping[str, Sequence[str]]) -> str:
    """The sentence on rows that share required attacks in different versions; empty without any.

    `apart`: ranked defense -> those that it is never called tied with.
    """
    groups: dict[frozenset[str], list[str]] = {}
    for name, others in apart.items():
        if others:
            groups.setdefault(frozenset(others), []).append(name)
    if not groups:
        return ""
    names = "; ".join(", ".join(group) for group in groups.values())
    return (
        "Evaluated with different versions of a ranked attack, so compared with each other but"
        f" never called tied: {names}."
    )


def _day(rows: Iterable[CellRow]) -> str:
    """The day (UTC) of the newest of some cells; empty without one."""
    last = max((row.updated for row in rows), default=None)
    return "" if last is None else datetime.fromtimestamp(last, UTC).date().isoformat()
