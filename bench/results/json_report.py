"""The report: one board as JSON values that scripts may rely on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.core.cells import PROTOCOL, SCHEMA
from bench.results.example_results import DefenseResult, load_results
from bench.results.leaderboards import Leaderboard, find_leaderboard, leaderboards
from bench.results.matrix import matrix_cells
from bench.results.ranking import RankingRow, alone, ranking_rows
from bench.results.verdicts import load_context
from bench.store import Store
from bench.threats.suites import Suite


def json_report(
    store: Store, threat: str | None = None, mode: str = "full", battery: Suite | None = None
) -> dict[str, Any]:
    """The board of the named threat model (None: the first) in a mode, its ranking and its matrix.

    With a suite, `suite` of a row is the figure over the attacks of that battery alone.

    `digest` is a SHA-256 over every example's verdict of every finished cell. It does not depend
    on time, batch, order or workers. BenchError where there is no such board.
    """
    board = find_leaderboard(store, threat, mode)
    attacks = _attacks(battery, board)
    played = load_results(store, board)
    ranked = ranking_rows(played, load_context(store, played, leaderboards(store)))
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "mode": board.mode,
        "threat": _threat(board),
        "suite": {"name": battery.name, "attacks": list(attacks)} if battery else None,
        "examples": {"n": board.n, "digest": board.examples},
        "ranking": [
            _row(row) | {"suite": _together(played.standings[row.defense], attacks)}
            for row in ranked
        ],
        "matrix": [asdict(square) for square in matrix_cells(played)],
        "digest": played.digest,
    }


def _attacks(battery: Suite | None, board: Leaderboard) -> tuple[str, ...]:
    if battery is None:
        return ()
    return battery.attacks_for(board.name, board.set["name"], board.access, board.goal["kind"])


def _together(standing: DefenseResult, attacks: Sequence[str]) -> dict[str, Any] | None:
    """How many of the battery are done, and the figure over them alone once all are."""
    if not attacks:
        return None
    done = sum(attack in standing.bouts for attack in attacks)
    whole = asdict(alone(standing, attacks)) if done == len(attacks) else None
    return {"done": done, "attacks": len(attacks), "robust": whole}


def _threat(board: Leaderboard) -> dict[str, Any]:
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


def _row(row: RankingRow) -> dict[str, Any]:
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
