"""A submitted threat model over a built-in set: sent as plain values, built anew in the harness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from bench.core.errors import BenchError, PluginError
from bench.core.protocols import LeaderboardProtocol
from bench.plugin import ThreatModel
from bench.registry.registry import Registry
from bench.sandbox.channel import WorkerChannel
from bench.sandbox.declarations import Declarations
from bench.sandbox.protocol import Frame
from bench.sandbox.set_codec import (
    decode_nuisance,
    decode_set,
    is_encodable,
    set_values,
)
from bench.threats.access import Access, Budget
from bench.threats.threat_model import Goal

MOST = 10**9
"""Largest number of a budget or of examples."""
LAST = ThreatModel.order
"""The default position in lists: no submission comes before the built-in threat models."""


class ThreatDeclarations(Declarations):
    """The fields of a ThreatModel and of its protocol."""

    dataset: str
    set: dict[str, str | int | float]
    """Name and parameters of a built-in set."""
    access: Literal[tuple(Access.__members__)]  # type: ignore[valid-type]
    goal: list[str] = Field(min_length=2, max_length=2)
    gradients: int | None = Field(ge=0, le=MOST)
    queries: int | None = Field(ge=0, le=MOST)
    examples: int = Field(ge=1, le=MOST)
    order: int = Field(ge=LAST, le=MOST)
    required: list[str]
    follow_ups: dict[str, list[str]]
    surrogates: dict[str, str]
    evidence: list[str]
    ranked: bool
    scope: str
    nuisance: dict[str, int | float] | None

    def threat_model(self, title: str, name: str) -> ThreatModel:
        """The threat model; raises PluginError, which names it by `title`, for invalid values."""
        protocol = LeaderboardProtocol(
            required=tuple(self.required),
            follow_ups={kind: tuple(names) for kind, names in self.follow_ups.items()},
            surrogates=self.surrogates,
            evidence=tuple(self.evidence),
            ranked=self.ranked,
        )
        try:
            return ThreatModel(
                name, self.dataset, decode_set(self.set), access=Access[self.access],
                goal=Goal(*self.goal), budget=Budget(self.gradients, self.queries),
                examples=self.examples, protocol=protocol, order=self.order, summary=self.summary,
                scope=self.scope,
                nuisance=None if self.nuisance is None else decode_nuisance(self.nuisance),
            )  # fmt: skip
        except (ValueError, LookupError, ArithmeticError) as error:
            raise PluginError(
                f"{title} declares the set {self.set} and the goal {self.goal}, which are not "
                f"valid: {error}."
            ) from error


def plain_values(threat: ThreatModel) -> dict[str, Any]:
    """What `ThreatDeclarations` parses. Raises PluginError for a set that is not built in."""
    if not is_encodable(threat.ball):
        raise PluginError(
            f"its perturbation set {type(threat.ball).__name__} is code of its own, and the "
            "sandbox supports built-in sets alone; --allow-unsandboxed runs it in the main "
            "process, with all your permissions, and without ranks"
        )
    protocol = threat.protocol
    return {
        "cite": "", "summary": threat.summary, "dataset": threat.dataset,
        "set": set_values(threat.ball), "access": threat.access.name,
        "goal": [threat.goal.kind, threat.goal.rule],
        "gradients": threat.budget.gradients, "queries": threat.budget.queries,
        "examples": threat.examples, "order": threat.order, "required": list(protocol.required),
        "follow_ups": {kind: list(names) for kind, names in protocol.follow_ups.items()},
        "surrogates": dict(protocol.surrogates), "evidence": list(protocol.evidence),
        "ranked": protocol.ranked, "scope": threat.scope,
        "nuisance": None if threat.nuisance is None else threat.nuisance.parameters(),
    }  # fmt: skip


def declare_threat(channel: WorkerChannel, load: Callable[[Frame], Any], frame: Frame) -> None:
    """Send the fields of the threat model of the source in a frame."""
    channel.reply({"declarations": plain_values(load(frame))})


def unknown_names(registry: Registry, threat: ThreatModel) -> str:
    """What a threat model names that is not registered, as a sentence; empty where there is none.

    Such a name would end every run that evaluates the threat model.
    """
    protocol = threat.protocol
    named = [("dataset", threat.dataset), *(("attack", name) for name in protocol.attacks)]
    named += [("defense", name) for name in protocol.surrogates.values()]
    named += [("threat", name) for name in protocol.evidence]
    waiting = registry.submissions.keys() - registry.reasons_not_imported
    for kind, name in named:
        if name in waiting and registry.submissions[name].card.kind == kind:
            continue
        try:
            registry.find(kind, name)
        except BenchError as error:
            return f"its protocol cannot be followed: {error}"
    return ""
