"""What a plugin offered: whose it is, of which type, and the card that lists it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.entry import NAME
from bench.fields import mistyped
from bench.identity import resolved, shown
from bench.plugin import (
    METHODS,
    Absent,
    Access,
    Attack,
    Certifier,
    Dataset,
    Defense,
    Diagnostic,
    Traits,
)
from bench.records import Card, PluginError, canonical, digest
from bench.threat import ThreatModel, describe

T = TypeVar("T")


@dataclass(frozen=True)
class Offer(Generic[T]):
    """One thing that a plugin offered, with where it came from."""

    value: T
    origin: str
    """`built-in`, `entry-point` or `submission`."""
    module: str
    source: str
    """SHA-256 of the plugin's module file, and of the plugin modules it imports."""
    folder: Path | None = None
    """A submission's folder; weights lie beside the code."""
    tier: str = "in-process"
    """How far its code is locked in."""


def complaint(kind: str, value: object) -> str:
    """Why this is no offer of its kind; empty when it is one."""
    wrong = mistyped(value, Absent) if isinstance(value, Absent) else _RULES[kind](value)
    if wrong:
        return wrong
    name = value.name  # type: ignore[attr-defined]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"has the name {name!r}; names are 1 to 64 of a-z, 0-9, '.', '_', '-'"
    return ""


def _is(kind: type) -> Callable[[object], str]:
    """A rule: the value is one of these records."""
    return lambda value: (
        mistyped(value, kind)
        if isinstance(value, kind)
        else f"is {shown(value)}, not a {kind.__name__}"
    )


def _has(kind: str, **wanted: Any) -> Callable[[object], str]:
    """A rule: the value has these attributes; `callable` stands for a method."""

    def rule(value: object) -> str:
        if isinstance(value, type):
            return f"is the class {value.__name__}; offer an instance: {value.__name__}()"
        for name in wanted:
            if not hasattr(value, name):
                return f"is {shown(value)} without {name!r}, which every {kind} has"
        return _may(value, **wanted)

    return rule


def _may(value: object, **wanted: Any) -> str:
    """Which of these attributes, where it is there at all, is of a wrong type."""
    for name, type_ in wanted.items():
        if not hasattr(value, name):
            continue
        found = getattr(value, name)
        if type_ is callable:
            if not callable(found):
                return f"has {name} = {shown(found)}, not a method"
        elif not isinstance(found, type_) or (type_ is int and isinstance(found, bool)):
            return f"has {name} = {shown(found)}, not of type {type_.__name__}"
    return ""


_STEPWISE = _has("attack", name=str, needs=Access, steps=int, start=callable, step=callable)
_WHOLE = _has("attack", name=str, needs=Access, run=callable)
_SET = _has(
    "perturbation set",
    name=str, distance=callable, contains=callable, sample=callable, project=callable,
)  # fmt: skip


def _attack(value: Any) -> str:
    whole = Traits.whole(value)
    wrong = _WHOLE(value) if whole else _STEPWISE(value)
    if wrong:
        return wrong
    if not whole and value.steps < 1:
        return f"has steps = {value.steps}; at least one is needed"
    there = {name: callable for name in METHODS if getattr(value, name, None) is not None}
    wrong = _may(value, **there) or mistyped(value, Traits, lists=True)
    return wrong or _nameless(resolved, value)


def _threat(value: Any) -> str:
    wrong = _is(ThreatModel)(value)
    if wrong:
        return wrong
    wrong = _SET(value.ball)
    return f"has a ball that {wrong}" if wrong else _nameless(describe, value.ball)


def _nameless(named: Callable[[Any], object], value: object) -> str:
    """Why no digest can name it; empty when one can."""
    try:
        named(value)
    except PluginError as error:
        return f"has a parameter without a digest: {error}".rstrip(".")
    return ""


def _certifier(value: object) -> str:
    wrong = _has("certifier", name=str, exact=bool, refuses=callable, certify=callable)(value)
    wrong = wrong or _may(value, cite=str, summary=str, quick=bool)
    if wrong:
        return wrong
    error = getattr(value, "error", 0.0)
    if not isinstance(error, int | float) or not 0 <= error < 1:
        return f"has error = {shown(error)}; the probability that a proof is wrong is due"
    if error and value.exact:  # type: ignore[attr-defined]
        return f"is exact and has error = {error}; an exact certifier is never wrong"
    return ""


def _diagnostic(value: object) -> str:
    wrong = _has("diagnostic", name=str, examine=callable)(value)
    return wrong or _may(value, cite=str, summary=str)


def _defense(value: Any) -> str:
    share = value.rejects if isinstance(value, Defense) else None
    if share is not None and not (isinstance(share, float) and 0 < share < 1):
        return f"has rejects = {shown(share)}; the share of clean images it rejects is due"
    wrong = _is(Defense)(value)
    if wrong:
        return wrong
    try:
        canonical(dict(value.detail))
    except (TypeError, ValueError, RecursionError):
        return (
            f"has detail = {shown(value.detail)}, which JSON cannot carry; "
            "use finite numbers, strings, lists and mappings of them"
        )
    return ""


_RULES: dict[str, Callable[[object], str]] = {
    "dataset": _is(Dataset),
    "threat": _threat,
    "attack": _attack,
    "defense": _defense,
    "certifier": _certifier,
    "diagnostic": _diagnostic,
}


def attack_digest(offer: Offer[Attack]) -> str:
    """Source, name (it keys the random numbers) and resolved parameters of an attack."""
    own = {"name": offer.value.name, "parameters": resolved(offer.value)}
    return digest({"source": offer.source, **own})


def attack_card(offer: Offer[Attack]) -> Card:
    """How lists and pages show an attack; one with a run of its own has no steps."""
    attack = offer.value
    traits = Traits.of(attack)
    detail = {
        "needs": attack.needs.name.lower(),
        "steps": None if Traits.whole(attack) else attack.steps,
        "norms": list(traits.norms),
        "goals": list(traits.goals),
        "retires": traits.retires.value,
        "minimises": traits.minimises,
        "source": traits.source,
        "joint": traits.joint,
        "parameters": resolved(attack),
    }
    about = (traits.cite, traits.summary)
    return Card("attack", attack.name, offer.origin, attack_digest(offer), *about, detail)


def defense_card(offer: Offer[Defense], digests: Mapping[str, str] | None = None) -> Card:
    """How lists and pages show a defense; `digests`: data set -> its digest as built there."""
    defense = offer.value
    claims = [{"threat": c.threat, "robust": c.robust, "cite": c.cite} for c in defense.claims]
    detail = {
        **defense.detail,
        "claims": claims,
        "randomness": defense.randomness.draws if defense.randomness else None,
        "stand_in": defense.stand_in is not None,
        "twin": defense.twin,
        "quick": defense.quick,
        "forwards": defense.forwards,
        "rejects": defense.rejects,
        "datasets": list(defense.datasets),
        "digests": dict(digests or {}),
    }
    about = (defense.cite, defense.summary)
    return Card("defense", defense.name, offer.origin, "", *about, detail)


def threat_card(offer: Offer[ThreatModel]) -> Card:
    """How lists and pages show a threat model: every rule in it."""
    threat = offer.value
    own = {"id": threat.id, "examples": threat.examples}
    detail = {**threat.rules(), **own, "order": threat.order, "ranked": threat.ranked}
    return Card("threat", threat.name, offer.origin, threat.id, "", threat.summary, detail)


def dataset_card(offer: Offer[Dataset]) -> Card:
    """How lists and pages show a data set."""
    data = offer.value
    detail = {
        "classes": list(data.classes),
        "shape": list(data.shape),
        "test_size": data.test_size,
    }
    return Card("dataset", data.name, offer.origin, data.digest, data.cite, data.summary, detail)


def tool_card(kind: str, offer: Offer[Certifier] | Offer[Diagnostic]) -> Card:
    """How lists show a certifier or a diagnostic."""
    tool = offer.value
    cite, summary = getattr(tool, "cite", ""), getattr(tool, "summary", "")
    return Card(kind, tool.name, offer.origin, offer.source, cite, summary, proof(tool))


def card(kind: str, offer: Offer[Any], digests: Mapping[str, str] | None = None) -> Card:
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


def listed(kind: str, offer: Offer[Any]) -> str:
    """The card as canonical JSON; raises whatever stands in the way of listing it."""
    whole = card(kind, offer)
    f"{whole.cite}{whole.summary}".encode()  # a terminal must be able to write it
    return canonical(asdict(whole))


def proof(tool: object) -> dict[str, Any]:
    """What a certifier says of its proofs: are they exact, how often may one be wrong."""
    if not hasattr(tool, "exact"):
        return {}
    return {"exact": tool.exact, "error": float(getattr(tool, "error", 0.0))}
