"""The report: one board as JSON values that scripts may rely on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.board.boards import Board, boards, find
from bench.board.flags import surroundings
from bench.board.matrix import squares
from bench.board.played import load
from bench.board.ranking import Row, rows
from bench.records import PROTOCOL, SCHEMA
from bench.store import Store


def report(store: Store, threat: str | None = None) -> dict[str, Any]:
    """The board of the named threat model (None: the first), its ranking and its matrix.

    `digest` is a SHA-256 over every example's verdict of every finished cell. It does not depend
    on time, batch, order or workers. BenchError where there is no such board.
    """
    board = find(store, threat)
    played = load(store, board)
    ranked = rows(played, surroundings(store, played, boards(store)))
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "mode": board.mode,
        "threat": _threat(board),
        "examples": {"n": board.n, "digest": board.examples},
        "ranking": [_row(row) for row in ranked],
        "matrix": [asdict(square) for square in squares(played)],
        "digest": played.digest,
    }


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
        named = {"certifier": proof.certifier, "exact": proof.exact}
        values["certified"] = asdict(proof.count) | named
    return values
