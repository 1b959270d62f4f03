"""The notice on the pages of the published database: where its results come from."""

from __future__ import annotations

from bench.results.published import ChangedCode, PublishedFacts, listed
from leaderboard import notices


def published_notice(facts: PublishedFacts, changed: ChangedCode) -> notices.Notice:
    """The notice on every page of the published database: date, machine classes, root, versions."""
    sentences = [
        f"Published {facts.date}, evaluated on {'; '.join(facts.machines)}. Root {facts.root}.",
        "These results come with the project. Your own take their place once bench run has written "
        "bench.db in this folder.",
    ]
    if names := sorted(changed.defenses) + sorted(changed.attacks):
        sentences.append(
            "The rows marked with an older version were made by an earlier version of "
            f"{listed(names)}."
        )
    if changed.evaluation:
        sentences.append("They were made by an earlier version of the engine.")
    return notices.Notice("Published results", tuple(sentences))
