"""Why a row has no rank, and the command that completes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.core.cells import BALANCED_ORDER, FAST
from bench.results.example_results import DefenseResult
from bench.results.fast_suite import mode_option
from bench.results.follow_ups import FollowUp
from bench.results.leaderboards import Leaderboard

LOW_N = 500
"""With fewer examples no defense is ranked."""


def why_no_rank(
    leaderboard: Leaderboard, result: DefenseResult, required: Sequence[str], row_verdict: str
) -> str:
    """Why a row has no rank; empty where it has. `required`: those attacks that apply to it."""
    if not leaderboard.ranked:
        return "This leaderboard is evidence only; nothing is ranked."
    if result.examples != leaderboard.examples:
        return (
            f"Low n: its answers are so costly that it was evaluated on the first "
            f"{len(result.clean)} of {leaderboard.n} examples; it is not compared with the others."
        )
    if not result.has_clean_pass:
        return "Provisional: the clean pass is not done."
    missing = [attack for attack in required if attack not in result.attacks]
    if not result.attacks or missing:
        done = len(required) - len(missing)
        first = f"Provisional: {done} of {len(required)} required attacks are done"
        return f"{first}. {_how_to_complete(leaderboard, result, missing)}"
    if not required:
        return "No required attack applies to it, so it cannot be compared."
    if row_verdict == "invalid":
        return "Invalid: a warning contradicts the figure."
    if leaderboard.mode != FAST and not result.decided_by(leaderboard.required):
        return (
            "Another attack of its cascade broke examples before a required one ran on them: the "
            "figure over the required attacks alone is not known."
        )
    if len(result.clean) < LOW_N:
        return f"Low n: with fewer than {LOW_N} examples nothing is ranked."
    return ""


def why_provisional(
    leaderboard: Leaderboard, result: DefenseResult, later: Iterable[FollowUp]
) -> str:
    """Why a complete row has no rank yet: follow-up attacks of its warnings are not done."""
    for one in later:
        missing = [attack for attack in one.attacks if attack not in result.attacks]
        if missing:
            return (
                f"Provisional: the warning {one.check} calls for {len(one.attacks)} follow-up"
                f" attacks, of which {one.done} are done."
                f" {_how_to_complete(leaderboard, result, missing)}"
            )
    return ""


def _how_to_complete(
    leaderboard: Leaderboard, result: DefenseResult, missing: Sequence[str]
) -> str:
    if not missing:
        return ""
    command = completing_command(leaderboard, result.defense, len(result.clean))
    return f"Missing: {', '.join(missing)}; `{command}` evaluates what is missing."


def completing_command(leaderboard: Leaderboard, defense: str, examples: int) -> str:
    """The command that evaluates what a row lacks, its follow-up attacks included."""
    mode = mode_option(leaderboard.mode)
    order = leaderboard.example_order
    chosen = "" if order == BALANCED_ORDER else f" --order {order}"
    start = f"bench run --threat {leaderboard.name}{defense_option(defense)}"
    return f"{start} --examples {examples}{mode}{chosen}"


def defense_option(defense: str) -> str:
    """The option of `bench run` that names a defense."""
    return f" --defense {defense}"
