"""The JSON report of one leaderboard, for scripts; a change of shape raises `schema`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.core.cells import FAST, PROTOCOL, SCHEMA
from bench.results.attack_findings import BATCH_CHECK, attack_warnings
from bench.results.example_results import DefenseResult, LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard, find_leaderboard, leaderboards
from bench.results.matrix import MatrixCell, matrix_cells
from bench.results.measures import distortion_curve, measures, robust_on_correct
from bench.results.pairwise import Separation, pair_records, ranked_bits, row_separations
from bench.results.ranking import RankingRow, ranking_rows, robust_count
from bench.results.verdicts import load_check_context
from bench.store import Store
from bench.threats.suites import Suite

OPTIONAL_KEYS = ("versions", "apart", "audit")
"""Keys of a row that are there only with several versions of code, or in the mode `fast`."""


def json_report(
    store: Store,
    threat: str | None = None,
    mode: str = "full",
    suite: Suite | None = None,
    order: str | None = None,
    leaderboard: Leaderboard | None = None,
) -> dict[str, Any]:
    """The leaderboard of a threat model (None: the first) in a mode, with ranking and matrix.

    `leaderboard` chooses one that is found already instead. With a suite, `suite` of a row is the
    figure over the suite's attacks alone. `digest` is a SHA-256 over the verdicts of all items of
    all finished cells; it does not depend on time, batch, order or workers. `root` covers all
    results of the database. Raises BenchError where there is no such leaderboard.
    """
    leaderboard = leaderboard or find_leaderboard(store, threat, mode, order)
    # In the mode `fast` the row itself is the figure of the suite.
    suite = None if leaderboard.mode == FAST else suite
    attacks = _attacks(suite, leaderboard)
    results = load_results(store, leaderboard)
    known = leaderboards(store)
    ranked = ranking_rows(results, load_check_context(store, results, known))
    siblings = [results, *(load_results(store, other) for other in leaderboard.other_radii(known))]
    separated = {n: _separation(one) for n, one in row_separations(results, ranked).items()}
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "mode": leaderboard.mode,
        "threat": _threat(leaderboard),
        "suite": {"name": suite.name, "attacks": list(attacks)} if suite else None,
        "examples": {
            "n": leaderboard.n,
            "digest": leaderboard.examples,
            "order": leaderboard.example_order,
        },
        "ranking": [
            _row(row)
            | {"suite": _suite_figure(results.defenses[row.defense], attacks)}
            | _measured(results, row.defense, siblings)
            | {"separation": separated.get(row.defense)}
            for row in ranked
        ],
        "pairs": pair_records(
            ranked_bits(results, ranked), {row.defense: row.apart for row in ranked}
        ),
        "matrix": [_cell(square) for square in matrix_cells(results)],
        "machines": _machines(results),
        "digest": results.digest,
        "root": store.root(),
    } | _attack_checks(store, results)


def _attack_checks(store: Store, results: LeaderboardResults) -> dict[str, Any]:
    """The attacks whose results depend on their batch; nothing where there is none."""
    found = attack_warnings(results, store.evidence_of(BATCH_CHECK))
    return {"attack_checks": found} if found else {}


def _cell(square: MatrixCell) -> dict[str, Any]:
    sentences = [{"sentence": one.sentence} for one in square.second]
    values = asdict(square)
    return values | {"second": [a | b for a, b in zip(values["second"], sentences, strict=True)]}


def _separation(found: Separation) -> dict[str, Any]:
    return asdict(found) | {"sentence": found.sentence}


def _measured(
    results: LeaderboardResults, defense: str, siblings: Sequence[LeaderboardResults]
) -> dict[str, Any]:
    """The further measures of a defense, over all attacks."""
    result = results.defenses[defense]
    return {
        "robust_on_correct": asdict(robust_on_correct(result)),
        "measures": asdict(measures(results, result)),
        "distortion": [asdict(point) for point in distortion_curve(defense, siblings)],
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


def _machines(results: LeaderboardResults) -> list[dict[str, Any]]:
    """Each machine class with the number of finished cells that it computed, in whole or part."""
    counts = Counter(machine for found in results.machines.values() for machine in found)
    return [
        {**asdict(machine), "sentence": machine.sentence, "cells": counts[machine]}
        for machine in sorted(counts)
    ]


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
    for name in OPTIONAL_KEYS:
        if not values[name]:
            del values[name]
    if row.audit is not None:
        values["audit"] |= {"most": row.audit.most, "sentence": row.audit.sentence}
    if row.certified is not None:
        certificate = row.certified
        named = {
            "certifier": certificate.certifier,
            "exact": certificate.exact,
            "error": certificate.error,
        } | ({"older": True} if certificate.older else {})
        values["certified"] = asdict(certificate.count) | named
    return values
