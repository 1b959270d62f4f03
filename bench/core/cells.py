"""Evaluation cells: the inputs of one cell, its content key and its state."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from bench.core.hashing import digest

PROTOCOL = 1
"""Version of the rules of play. A change that may move a verdict moves this number."""


SCHEMA = 1
"""Version of every JSON document that a command prints."""


MODES = ("full", "rank")
"""Every attack meets every example; or, in a cascade, the survivors of the attacks before it."""


class Numeric(StrEnum):
    """In which arithmetic the attacks ask a defense; successes are confirmed in float32 always."""

    FLOAT32 = "float32"
    """As it was built."""
    FAST = "fast"
    """float32, rearranged: BatchNorm folded, channels last."""
    BFLOAT16 = "bfloat16"
    """The same, with products in bfloat16; survivors are audited in float32 by sample."""


class CellState(StrEnum):
    """Where a cell stands. Only `done` cells carry a figure."""

    MISSING = "missing"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"


class Culprit(StrEnum):
    """Who must act when a cell failed."""

    PLUGIN = "plugin"
    HARNESS = "harness"
    INFRASTRUCTURE = "infrastructure"
    USER = "user"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no figure."""

    culprit: Culprit
    reason: str
    """One sentence: what came, what was expected, what to do."""


@dataclass(frozen=True)
class Cell:
    """One attack, one defense, one threat model, one seed, one set of examples."""

    threat: str
    """Name of the threat model; empty for the clean pass."""
    defense: str
    attack: str
    """Name of the attack; `clean` for the clean pass."""
    threat_id: str
    defense_digest: str
    """Source and weights."""
    attack_digest: str
    """Source and resolved parameters."""
    examples: str
    """Digest of data and index list."""
    items: int
    """How many outcomes make the cell complete: examples, or (example, target) pairs; in rank
    mode those that it meets."""
    seed: int = 0
    mode: str = "full"
    numeric: str = Numeric.FLOAT32
    source_digest: str = ""
    """Digest of the model that a transfer attack asks instead of the defense."""
    before: str = ""
    """Key of the cell whose survivors this one meets; empty for the first, and in full mode."""
    protocol: int = PROTOCOL

    @property
    def key(self) -> str:
        """The content key. Names are not part of it: renaming does not play a cell again."""
        named = asdict(self)
        # A cell that follows none has the key it had before cascades were there.
        for name in ("threat", "defense", "attack", *([] if self.before else ["before"])):
            del named[name]
        return digest(named)


CLEAN = "clean"


COSTLY_FORWARDS = 20
"""Passes of the network for one answer, above which a defense is played on FEW examples."""


FEW_EXAMPLES = 128
