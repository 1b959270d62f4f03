"""Cards: what lists and pages show of a registered plugin, one typed model per kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bench.core.protocols import LeaderboardProtocol


@dataclass(frozen=True)
class Claim:
    """A defense author's robust accuracy under a named threat model."""

    threat: str
    robust: float
    """Share of all examples that stay right, 0 to 1."""
    cite: str = ""


class SubmissionInfo(BaseModel):
    """What `card.toml` states about a submission whose code has not been imported."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str = ""
    authors: tuple[str, ...] = ()
    licence: str = ""


class Card(BaseModel):
    """The fields that every kind of card has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    name: str
    origin: str
    """`built-in`, `entry-point` or `submission`."""
    digest: str = ""
    cite: str = ""
    summary: str = ""
    submission: SubmissionInfo | None = None
    """None where the plugin's code has been imported."""


class AttackCard(Card):
    """An attack with its declared traits."""

    kind: Literal["attack"] = "attack"
    needs: str = "gradients"
    """The access it needs: `nothing`, `labels`, `scores` or `gradients`."""
    steps: int | None = None
    """Steps of one restart; None for an external attack."""
    norms: tuple[str, ...] = ()
    """Empty: every perturbation set."""
    goals: tuple[str, ...] = ()
    """Empty: every goal."""
    stop_rule: str = "first success"
    minimises: bool = False
    """Whether it looks for the smallest perturbation."""
    source: str = ""
    """Role of the surrogate model that it queries; empty where it queries the defense."""
    eot_draws: int = 0
    """Draws of a random defense that each gradient averages; 0: as the defense declares."""
    examples: int = 0
    """Number of examples it runs on, the first ones; 0: all."""
    joint: bool = False
    """Whether it attacks classifier and detector together."""
    samples: bool = False
    """Whether it draws points without following an answer of the model."""
    written_for: tuple[str, ...] = ()
    """Names of the defenses that it was written for."""
    parameters: Mapping[str, Any] = {}
    """Parameters by name, as JSON values."""


class DefenseCard(Card):
    """A defense with what its author declares."""

    kind: Literal["defense"] = "defense"
    claims: tuple[Claim, ...] = ()
    randomness: int | None = None
    """Draws over which an attacker averages a gradient (EOT); None for a deterministic defense."""
    bpda: bool = False
    """Whether it declares a BPDA approximation."""
    surrogate: str = ""
    """The defense that transfer attacks query instead of this one."""
    quick: bool = True
    """Whether `bench run` without --defense includes it."""
    forwards: int = 1
    """Passes of the network that one answer takes."""
    rejects: float | None = None
    """Share of clean images that it is set to reject; None where it answers every image."""
    control: str = ""
    """Why this control hides its gradient on purpose; empty for every other defense."""
    datasets: tuple[str, ...] = ()
    digests: Mapping[str, str] = {}
    """Data set -> digest of the defense as built for it."""


class ThreatCard(Card):
    """A threat model with all its rules."""

    kind: Literal["threat"] = "threat"
    id: str = ""
    """Digest of the rules; empty where the code has not been imported."""
    dataset: str = ""
    set: Mapping[str, Any] = {}
    """The perturbation set: name, eps as an exact fraction, radius."""
    access: str = ""
    goal: Mapping[str, str] = {}
    """kind and rule."""
    budget: Mapping[str, int | None] = {}
    """Gradient evaluations and queries per example; None: no limit."""
    protocol: LeaderboardProtocol = LeaderboardProtocol()
    """What its leaderboard asks of every defense."""
    examples: int = 0
    order: int = 100
    """Position in lists; the smallest comes first."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_record(cls, record: Any) -> Any:
        """A record from before protocols has `required` and `ranked` in their place."""
        if not isinstance(record, Mapping) or "protocol" in record or "required" not in record:
            return record
        protocol = {"required": record["required"], "ranked": record.get("ranked", True)}
        return {**record, "protocol": protocol}


class DatasetCard(Card):
    """A data set."""

    kind: Literal["dataset"] = "dataset"
    classes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    """(C, H, W)."""
    test_size: int = 0


class CertifierCard(Card):
    """A certifier with the strength of its certificates."""

    kind: Literal["certifier"] = "certifier"
    exact: bool = False
    """Whether every example without a certificate can be broken."""
    error: float = 0.0
    """Probability that one certificate is wrong; 0 for a deterministic certifier."""


class DiagnosticCard(Card):
    """A diagnostic."""

    kind: Literal["diagnostic"] = "diagnostic"


CardT = TypeVar("CardT", bound=Card)

CARD_MODELS: Mapping[str, type[Card]] = {
    model.model_fields["kind"].default: model
    for model in (AttackCard, DefenseCard, ThreatCard, DatasetCard, CertifierCard, DiagnosticCard)
}
"""Kind -> model of its cards."""

SHARED_FIELDS = ("kind", "name", "origin", "digest", "cite", "summary")


def kind_fields(card: Card) -> dict[str, Any]:
    """The fields of a card beyond the shared ones, as JSON values."""
    own = card.model_dump(exclude=set(SHARED_FIELDS))
    if card.submission is None:
        del own["submission"]
    return own


def card_record(card: Card) -> dict[str, Any]:
    """A card as JSON values: the shared fields, and those of its kind under `detail`."""
    shared = {name: getattr(card, name) for name in SHARED_FIELDS}
    return {**shared, "detail": kind_fields(card)}


def read_card(model: type[CardT], record: Mapping[str, Any]) -> CardT:
    """The card of a stored record, which an older version may have written.

    A field that this version does not have is dropped; one that is missing, or has a type that
    this version does not accept, gets its default.
    """
    fields = {**record["detail"], **{name: record[name] for name in SHARED_FIELDS}}
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        unreadable = {part["loc"][0] for part in error.errors()}
        return model.model_validate({n: v for n, v in fields.items() if n not in unreadable})
