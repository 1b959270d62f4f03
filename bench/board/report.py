"""The report: one board as JSON values that scripts may rely on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.board.boards import Board, boards, find
from bench.board.flags import surroundings
from bench.board.matrix import squares
from bench.board.played import Standing, load
from bench.board.ranking import Row, alone, rows
from bench.profile import Profile
from bench.records import PROTOCOL, SCHEMA
from bench.store import Store


def report(
    store: Store, threat: str | None = None, mode: str = "full", battery: Profile | None = None
) -> dict[str, Any]:
    """The board of the named threat model (None: the first) in a mode, its ranking and its matrix.

    With a profile, `profile` of a row is the figure over the attacks of that battery alone.

    `digest` is a SHA-256 over every example's verdict of every finished cell. It does not depend
    on time, batch, order or workers. BenchError where there is no such board.
    """
    board = find(store, threat, mode)
    attacks = _attacks(battery, board)
    played = load(store, board)
    ranked = rows(played, surroundings(store, played, boards(store)))
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "mode": board.mode,
        "threat": _threat(board),
        "profile": {"name": battery.name, "attacks": list(attacks)} if battery else None,
        "examples": {"n": board.n, "digest": board.examples},
        "ranking": [
            _row(row) | {"profile": _together(played.standings[row.defense], attacks)}
            for row in ranked
        ],
        "matrix": [asdict(square) for square in squares(played)],
        "digest": played.digest,
    }


def _attacks(battery: Profile | None, board: Board) -> tuple[str, ...]:
    if battery is None:
        return ()
    return battery.on(board.name, board.set["name"], board.access, board.goal["kind"])


def _together(standing: Standing, attacks: Sequence[str]) -> dict[str, Any] | None:
    """How many of the battery are done, and the figure over them alone once all are."""
    if not attacks:
        return None
    done = sum(attack in standing.bouts for attack in attacks)
    whole = asdict(alone(standing, attacks)) if done == len(attacks) else None
    return {"done": done, "attacks": len(attacks), "robust": whole}


def _threat(board: Board) -> dict[str, Any]:
    return {
        "id": board.id,
        "name": board.name,
        "dataset": board.dataset,
        "set": dict(board.set),
        "access": board.access,
        "goal": dict(board.goal),
        "budget": dict(board.budget),
        "required": list(board.required),
        "ranked": board.ranked,
        "summary": board.summary,
    }


def _row(row: Row) -> dict[str, Any]:
    values = asdict(row)
    if row.rank is not None:
        values |= {"rank": [row.rank.best, row.rank.worst], "group": row.rank.group}
    else:
        values |= {"rank": None, "group": None}
    values["flags"] = [asdict(flag) for flag in row.flags]
    if row.certified is not None:
        proof = row.certified
        named = {"certifier": proof.certifier, "exact": proof.exact, "error": proof.error}
        values["certified"] = asdict(proof.count) | named
    return values
