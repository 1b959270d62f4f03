"""Rows of the suite `fast`: what the audit has shown, and why a row has no rank there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.core.audits import Audit
from bench.core.cells import FAST, CellState
from bench.results.example_results import DefenseResult, LeaderboardResults
from bench.results.fast_items import FastStage, stage_of
from bench.store import Store


def load_audits(store: Store, results: LeaderboardResults) -> dict[str, Audit]:
    """The audit of each defense of which it is done; empty in other modes than `fast`."""
    if results.leaderboard.mode != FAST or not results.leaderboard.required:
        return {}
    first, *standard = results.leaderboard.required
    found: dict[str, Audit] = {}
    for name, result in results.defenses.items():
        rows = [r for r in results.cells.get((name, first), ()) if r.state is CellState.DONE]
        if rows:
            stage = stage_of(store, max(rows, key=lambda row: row.updated))
            audit = audit_of(stage, result, [a for a in standard if a in result.attacks])
            found |= {} if audit is None else {name: audit}
    return found


def audit_of(stage: FastStage, result: DefenseResult, standard: Sequence[str]) -> Audit | None:
    """The audit of a row over the attacks of `standard`; None while one has met only a part."""
    if not standard or not _met(result, standard, (*stage.near, *stage.sample)):
        return None
    broken = ~result.robust(standard) & result.clean
    return Audit(
        fell=int(broken[list(stage.sample)].sum()),
        sample=len(stage.sample),
        population=len(stage.sample) + len(stage.others),
        n=len(result.clean),
        whole=_met(result, standard, stage.others),
    )


def _met(result: DefenseResult, attacks: Sequence[str], items: Sequence[int]) -> bool:
    """Whether each attack has met these examples, except those that another one broke."""
    index = list(items)
    over = ~result.robust(attacks)[index]
    return all(bool(np.all(result.attacks[name].evaluated[index] | over)) for name in attacks)


def why_no_fast_rank(audit: Audit | None, verdict: str) -> str:
    """Why a complete row of the suite `fast` has no rank; empty where it has one."""
    if audit is None:
        return "Provisional: the audit is not done; run it again with --suite fast."
    where = "`bench run --suite standard` evaluates it for a rank"
    if verdict != "sound":
        return f"No rank by the suite fast, because a gradient-masking check warns: {where}."
    if not audit.passed:
        return f"No rank by the suite fast: {audit.sentence}; {where}."
    return ""
