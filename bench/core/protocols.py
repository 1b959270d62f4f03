"""What a leaderboard asks of every defense: attacks, surrogates, follow-ups. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from bench.core.hashing import digest

DECLARED, LEARNED, LEARNED_STRONG = "surrogate", "learned", "learned-strong"
"""Sources of a transfer attack that no protocol names: the surrogate that the defense declares, and
two that are learned from the labels of the defense."""


@dataclass(frozen=True)
class LeaderboardProtocol:
    """What a leaderboard asks of every defense; no part of a threat model's id or a cell's key.

    Changing it evaluates no cell again that is there; only missing cells are evaluated.
    """

    required: tuple[str, ...] = ()
    """Names of the attacks without which a defense has no rank."""
    follow_ups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Kind of answer to a warning of a gradient-masking check -> attacks that run in this order.

    The kinds, their order, and the checks that each one answers are in `bench.results.check_table`.
    """
    surrogates: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Role that transfer attacks name as their `source` -> public defense that plays it."""
    evidence: tuple[str, ...] = ()
    """Names of unranked threat models that a run evaluates besides, for gradient-masking checks."""
    ranked: bool = True
    """Whether defenses are ranked; otherwise the results are evidence for other leaderboards."""

    @property
    def id(self) -> str:
        """Digest of the protocol; part of leaderboards and of no cell."""
        return digest(asdict(self))[:16]

    @property
    def attacks(self) -> tuple[str, ...]:
        """The required attacks and all follow-up attacks, each once."""
        later = [name for names in self.follow_ups.values() for name in names]
        return tuple(dict.fromkeys((*self.required, *later)))
