"""The notice on the pages of the published database: where its results come from."""

from __future__ import annotations

from bench.results.published import ChangedCode, PublishedFacts, listed
from leaderboard import markup
from leaderboard.markup import Html

OWN_RESULTS = (
    "These results come with the project. Your own take their place once bench run has written"
    " bench.db in this folder."
)


def published_notice(facts: PublishedFacts, changed: ChangedCode) -> Html:
    """The line on every page of the published database: date, machine classes, root, versions."""
    engine = ", made by an earlier version of the engine" if changed.evaluation else ""
    machines = "; ".join(facts.machines)
    line = f"Published results of {facts.date}{engine}. Evaluated on {machines}. Root {facts.root}."
    sentences = [OWN_RESULTS]
    if names := sorted(changed.defenses) + sorted(changed.attacks):
        sentences.append(
            "The rows marked with an older version were made by an earlier version of "
            f"{listed(names)}."
        )
    summary = markup.tag("summary", markup.reason(line))
    more = markup.join(markup.tag("p", markup.reason(sentence)) for sentence in sentences)
    return markup.tag("details", Html(summary + more), class_="g-origin")
