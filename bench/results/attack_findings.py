"""What was found about attacks themselves: results that depend on the rest of the batch."""

from __future__ import annotations

from collections.abc import Mapping

from bench.core.variant_names import variant_order
from bench.results.example_results import LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard
from bench.results.masking_checks import WARNING
from bench.store import EvidenceRow, Store

ATTACK_OWNER = "attacks"
"""Reserved name of a defense: evidence rows about attacks, under the digest of the attack."""
BATCH_CHECK = "attack-is-batch-independent"
"""Name of the evidence row."""


def attack_warnings(
    results: LeaderboardResults, evidence: Mapping[str, EvidenceRow]
) -> dict[str, str]:
    """Attack -> sentence, for the attacks with a result whose results depend on their batch.

    `evidence`: digest of an attack -> what was found.
    """
    found = {}
    for result in results.defenses.values():
        for name, attack in result.attacks.items():
            row = evidence.get(attack.card.digest)
            if row is not None and row.finding == WARNING:
                found[name] = row.sentence
    return {name: found[name] for name in sorted(found, key=variant_order)}


def load_attack_warnings(store: Store, leaderboard: Leaderboard) -> dict[str, str]:
    """`attack_warnings` of a leaderboard."""
    evidence = store.evidence_of(BATCH_CHECK)
    return attack_warnings(load_results(store, leaderboard), evidence) if evidence else {}
