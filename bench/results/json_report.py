"""The JSON report of one leaderboard, for scripts; a change of shape raises `schema`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.core.cells import PROTOCOL, SCHEMA
from bench.results.example_results import DefenseResult, load_results
from bench.results.leaderboards import Leaderboard, find_leaderboard, leaderboards
from bench.results.matrix import matrix_cells
from bench.results.ranking import RankingRow, ranking_rows, robust_count
from bench.results.verdicts import load_check_context
from bench.store import Store
from bench.threats.suites import Suite


def json_report(
    store: Store, threat: str | None = None, mode: str = "full", suite: Suite | None = None
) -> dict[str, Any]:
    """The leaderboard of a threat model (None: the first) in a mode, with ranking and matrix.

    With a suite, `suite` of a row is the figure over the suite's attacks alone. `digest` is a
    SHA-256 over the verdicts of all items of all finished cells; it does not depend on time, batch,
    order or workers. Raises BenchError where there is no such leaderboard.
    """
    leaderboard = find_leaderboard(store, threat, mode)
    attacks = _attacks(suite, leaderboard)
    results = load_results(store, leaderboard)
    ranked = ranking_rows(results, load_check_context(store, results, leaderboards(store)))
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "mode": leaderboard.mode,
        "threat": _threat(leaderboard),
        "suite": {"name": suite.name, "attacks": list(attacks)} if suite else None,
        "examples": {"n": leaderboard.n, "digest": leaderboard.examples},
        "ranking": [
            _row(row) | {"suite": _suite_figure(results.defenses[row.defense], attacks)}
            for row in ranked
        ],
        "matrix": [asdict(square) for square in matrix_cells(results)],
        "digest": results.digest,
    }


def _attacks(suite: Suite | None, leaderboard: Leaderboard) -> tuple[str, ...]:
    if suite is None:
        return ()
    return suite.attacks_for(
        leaderboard.name, leaderboard.set["name"], leaderboard.access, leaderboard.goal["kind"]
    )


def _suite_figure(result: DefenseResult, attacks: Sequence[str]) -> dict[str, Any] | None:
    """How many of the suite's attacks are done, and the figure over them once all are."""
    if not attacks:
        return None
    done = sum(attack in result.attacks for attack in attacks)
    whole = asdict(robust_count(result, attacks)) if done == len(attacks) else None
    return {"done": done, "attacks": len(attacks), "robust": whole}


def _threat(leaderboard: Leaderboard) -> dict[str, Any]:
    return {
        "id": leaderboard.id,
        "name": leaderboard.name,
        "dataset": leaderboard.dataset,
        "set": dict(leaderboard.set),
        "access": leaderboard.access,
        "goal": dict(leaderboard.goal),
        "budget": dict(leaderboard.budget),
        "required": list(leaderboard.required),
        "ranked": leaderboard.ranked,
        "summary": leaderboard.summary,
    }


def _row(row: RankingRow) -> dict[str, Any]:
    values = asdict(row)
    if row.rank is not None:
        values |= {"rank": [row.rank.best, row.rank.worst], "group": row.rank.group}
    else:
        values |= {"rank": None, "group": None}
    values["flags"] = [asdict(flag) for flag in row.flags]
    if row.certified is not None:
        certificate = row.certified
        named = {
            "certifier": certificate.certifier,
            "exact": certificate.exact,
            "error": certificate.error,
        }
        values["certified"] = asdict(certificate.count) | named
    return values
