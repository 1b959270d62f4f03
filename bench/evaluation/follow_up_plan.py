"""Plans the follow-up attacks that the recorded warnings of a selection call for."""

from __future__ import annotations

from collections.abc import Iterator

from bench.evaluation import plan
from bench.evaluation.plan import PlannedPair, Selection
from bench.plugin import ThreatModel
from bench.registry.registry import Registry
from bench.results.example_results import load_results
from bench.results.follow_ups import called_attacks
from bench.results.leaderboards import Leaderboard, leaderboards
from bench.results.verdicts import all_checks, load_check_context
from bench.store import Store


def follow_up_pairs(registry: Registry, store: Store, selection: Selection) -> list[PlannedPair]:
    """The follow-up attacks of every selected defense with a warning, ordered by defense.

    Empty in a cascade and where attacks were named: warnings then call for no further attacks.
    """
    if selection.attacks or selection.mode != "full":
        return []
    threats = plan.selected_threats(registry, selection)
    names = {d.name for d in plan.selected_defenses(registry, selection, threats)}
    known = leaderboards(store)
    found: list[PlannedPair] = []
    for threat in threats:
        for leaderboard in _leaderboards_of(threat, known, registry, selection):
            found += _called_for(registry, store, threat, leaderboard, known, names)
    return sorted(found, key=lambda pair: pair.defense.name)


def _leaderboards_of(
    threat: ThreatModel, known: list[Leaderboard], registry: Registry, selection: Selection
) -> Iterator[Leaderboard]:
    """The leaderboard of a threat model on the selected number of examples."""
    size = registry.find("dataset", threat.dataset).value.test_size
    count = selection.examples or min(threat.examples, size)
    for leaderboard in known:
        same = (leaderboard.name, leaderboard.id, leaderboard.mode) == (
            threat.name, threat.id, selection.mode,
        )  # fmt: skip
        if same and leaderboard.n == count and leaderboard.protocol.follow_ups:
            yield leaderboard


def _called_for(
    registry: Registry,
    store: Store,
    threat: ThreatModel,
    leaderboard: Leaderboard,
    known: list[Leaderboard],
    defenses: set[str],
) -> Iterator[PlannedPair]:
    results = load_results(store, leaderboard, current_only=True)
    context = load_check_context(store, results, known)
    for name, result in results.defenses.items():
        if name not in defenses or not result.has_clean_pass or not result.attacks:
            continue
        defense = registry.find("defense", name).value
        for attack_name in called_attacks(results, all_checks(results, result, context)):
            attack = registry.find("attack", attack_name).value
            yield plan.planned_pair(registry, threat, defense, attack)
