"""Builds the card of a registered plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.core.cards import (
    AttackCard,
    Card,
    CertifierCard,
    DatasetCard,
    DefenseCard,
    DiagnosticCard,
    ThreatCard,
    card_record,
)
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


def attack_digest(registration: Registration[Attack]) -> str:
    """Source, name (it keys the random numbers) and resolved parameters of an attack."""
    own = {"name": registration.value.name, "parameters": parameters_of(registration.value)}
    return digest({"source": registration.source, **own})


def attack_card(registration: Registration[Attack]) -> AttackCard:
    """The card of an attack; external and shared attacks have no number of steps."""
    attack = registration.value
    traits = Traits.of(attack)
    return AttackCard(
        name=attack.name,
        origin=registration.origin,
        digest=attack_digest(registration),
        cite=traits.cite,
        summary=traits.summary,
        needs=attack.needs.name.lower(),
        steps=attack.steps if Traits.has_steps(attack) else None,
        norms=traits.norms,
        goals=traits.goals,
        stop_rule=traits.stop_rule.value,
        minimises=traits.minimises,
        source=traits.source,
        eot_draws=traits.eot_draws,
        examples=traits.examples,
        joint=traits.joint,
        samples=traits.samples,
        written_for=traits.written_for,
        parameters=parameters_of(attack),
    )


def defense_card(
    registration: Registration[Defense], digests: Mapping[str, str] | None = None
) -> DefenseCard:
    """The card of a defense; `digests`: data set -> digest of the defense as built for it."""
    defense = registration.value
    return DefenseCard(
        name=defense.name,
        origin=registration.origin,
        cite=defense.cite,
        summary=defense.summary,
        claims=defense.claims,
        randomness=defense.randomness.draws if defense.randomness else None,
        bpda=defense.bpda is not None,
        surrogate=defense.surrogate,
        quick=defense.quick,
        forwards=defense.forwards,
        rejects=defense.rejects,
        control=defense.control,
        datasets=defense.datasets,
        digests=dict(digests or {}),
    )


def threat_card(registration: Registration[ThreatModel]) -> ThreatCard:
    """The card of a threat model, with all its rules."""
    threat = registration.value
    return ThreatCard(
        name=threat.name,
        origin=registration.origin,
        digest=threat.id,
        summary=threat.summary,
        id=threat.id,
        examples=threat.examples,
        order=threat.order,
        protocol=threat.protocol,
        **threat.rules(),
    )


def dataset_card(registration: Registration[Dataset]) -> DatasetCard:
    """The card of a data set."""
    data = registration.value
    return DatasetCard(
        name=data.name,
        origin=registration.origin,
        digest=data.digest,
        cite=data.cite,
        summary=data.summary,
        classes=data.classes,
        shape=data.shape,
        test_size=data.test_size,
    )


def certifier_card(registration: Registration[Certifier]) -> CertifierCard:
    """The card of a certifier."""
    tool = registration.value
    return CertifierCard(
        name=tool.name,
        origin=registration.origin,
        digest=registration.source,
        cite=getattr(tool, "cite", ""),
        summary=getattr(tool, "summary", ""),
        exact=tool.exact,
        error=float(getattr(tool, "error", 0.0)),
    )


def diagnostic_card(registration: Registration[Diagnostic]) -> DiagnosticCard:
    """The card of a diagnostic."""
    tool = registration.value
    return DiagnosticCard(
        name=tool.name,
        origin=registration.origin,
        digest=registration.source,
        cite=getattr(tool, "cite", ""),
        summary=getattr(tool, "summary", ""),
    )


def card_of(
    kind: str, registration: Registration[Any], digests: Mapping[str, str] | None = None
) -> Card:
    """The card of a registered plugin of any kind; `digests` of a defense."""
    if kind == "defense":
        return defense_card(registration, digests)
    return _CARD_OF[kind](registration)


_CARD_OF: Mapping[str, Callable[[Registration[Any]], Card]] = {
    "dataset": dataset_card,
    "threat": threat_card,
    "attack": attack_card,
    "certifier": certifier_card,
    "diagnostic": diagnostic_card,
}


def card_json(kind: str, registration: Registration[Any]) -> str:
    """The card as canonical JSON; raises where it cannot be listed."""
    card = card_of(kind, registration)
    f"{card.cite}{card.summary}".encode()  # a terminal must be able to write it
    return canonical(card_record(card))
