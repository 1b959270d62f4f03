"""Builds the card of a registered plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.core.cards import Card
from bench.core.hashing import canonical, digest
from bench.plugin import (
    Attack,
    Certifier,
    Dataset,
    Defense,
    Diagnostic,
    Traits,
)
from bench.registry.registration import Registration
from bench.threats.fingerprint import parameters_of
from bench.threats.threat_model import ThreatModel


def attack_digest(offer: Registration[Attack]) -> str:
    """Source, name (it keys the random numbers) and resolved parameters of an attack."""
    own = {"name": offer.value.name, "parameters": parameters_of(offer.value)}
    return digest({"source": offer.source, **own})


def attack_card(offer: Registration[Attack]) -> Card:
    """How lists and pages show an attack; one with a run of its own has no steps."""
    attack = offer.value
    traits = Traits.of(attack)
    detail = {
        "needs": attack.needs.name.lower(),
        "steps": None if Traits.is_external(attack) else attack.steps,
        "norms": list(traits.norms),
        "goals": list(traits.goals),
        "stop_rule": traits.stop_rule.value,
        "minimises": traits.minimises,
        "source": traits.source,
        "joint": traits.joint,
        "parameters": parameters_of(attack),
    }
    about = (traits.cite, traits.summary)
    return Card("attack", attack.name, offer.origin, attack_digest(offer), *about, detail)


def defense_card(offer: Registration[Defense], digests: Mapping[str, str] | None = None) -> Card:
    """How lists and pages show a defense; `digests`: data set -> its digest as built there."""
    defense = offer.value
    claims = [{"threat": c.threat, "robust": c.robust, "cite": c.cite} for c in defense.claims]
    detail = {
        **defense.detail,
        "claims": claims,
        "randomness": defense.randomness.draws if defense.randomness else None,
        "bpda": defense.bpda is not None,
        "surrogate": defense.surrogate,
        "quick": defense.quick,
        "forwards": defense.forwards,
        "rejects": defense.rejects,
        "datasets": list(defense.datasets),
        "digests": dict(digests or {}),
    }
    about = (defense.cite, defense.summary)
    return Card("defense", defense.name, offer.origin, "", *about, detail)


def threat_card(offer: Registration[ThreatModel]) -> Card:
    """How lists and pages show a threat model: every rule in it."""
    threat = offer.value
    own = {"id": threat.id, "examples": threat.examples}
    detail = {**threat.rules(), **own, "order": threat.order, "ranked": threat.ranked}
    return Card("threat", threat.name, offer.origin, threat.id, "", threat.summary, detail)


def dataset_card(offer: Registration[Dataset]) -> Card:
    """How lists and pages show a data set."""
    data = offer.value
    detail = {
        "classes": list(data.classes),
        "shape": list(data.shape),
        "test_size": data.test_size,
    }
    return Card("dataset", data.name, offer.origin, data.digest, data.cite, data.summary, detail)


def tool_card(kind: str, offer: Registration[Certifier] | Registration[Diagnostic]) -> Card:
    """How lists show a certifier or a diagnostic."""
    tool = offer.value
    cite, summary = getattr(tool, "cite", ""), getattr(tool, "summary", "")
    return Card(kind, tool.name, offer.origin, offer.source, cite, summary, certifier_facts(tool))


def card_of(kind: str, offer: Registration[Any], digests: Mapping[str, str] | None = None) -> Card:
    """How lists and pages show what was offered, whatever its kind; `digests` of a defense."""
    match kind:
        case "dataset":
            return dataset_card(offer)
        case "threat":
            return threat_card(offer)
        case "attack":
            return attack_card(offer)
        case "defense":
            return defense_card(offer, digests)
    return tool_card(kind, offer)


def card_json(kind: str, offer: Registration[Any]) -> str:
    """The card as canonical JSON; raises whatever stands in the way of listing it."""
    whole = card_of(kind, offer)
    f"{whole.cite}{whole.summary}".encode()  # a terminal must be able to write it
    return canonical(asdict(whole))


def certifier_facts(tool: object) -> dict[str, Any]:
    """What a certifier says of its proofs: are they exact, how often may one be wrong."""
    if not hasattr(tool, "exact"):
        return {}
    return {"exact": tool.exact, "error": float(getattr(tool, "error", 0.0))}
