"""Evaluation cells: the inputs of one cell, its content key and its state."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from bench.core.hashing import digest

PROTOCOL = 1
"""Version of the evaluation protocol; raised by a change that may change a verdict."""


SCHEMA = 2
"""Version of every JSON document that a command prints."""


FAST = "fast"
MODES = ("full", "rank", FAST)
"""full: every attack runs on every example; rank: a cascade, where each attack runs on the examples
that the attacks before it did not break; fast: the cascade of the suite `fast`, in which most
attacks run on a part of these."""


BALANCED_ORDER, FILE_ORDER = "balanced", "file"
EXAMPLE_ORDERS = (BALANCED_ORDER, FILE_ORDER)
"""Which test images are the first n. balanced: of the data set's fixed order, a keyed shuffle that
alternates between the classes; file: of the official file, as RobustBench counts."""


class Numeric(StrEnum):
    """The arithmetic in which attacks query a model; successes are always confirmed in float32."""

    FLOAT32 = "float32"
    """The model as it was built."""
    FAST = "fast"
    """float32 with BatchNorm folded and channels last."""
    BFLOAT16 = "bfloat16"
    """`fast` with products in bfloat16; a sample of the survivors is audited in float32."""


class CellState(StrEnum):
    """The state of a cell; only `done` cells have figures."""

    MISSING = "missing"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"


class Culprit(StrEnum):
    """Whose fault a failed cell is."""

    PLUGIN = "plugin"
    HARNESS = "harness"
    INFRASTRUCTURE = "infrastructure"
    USER = "user"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no figures."""

    culprit: Culprit
    reason: str
    """One sentence: what came, what was expected, what to do."""


@dataclass(frozen=True)
class Cell:
    """An evaluation cell: one attack, one defense, one threat model, one seed, one example set."""

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
    """Outcomes of the complete cell: examples, or (example, target) pairs; in a cascade those that
    it is left."""
    seed: int = 0
    mode: str = "full"
    numeric: str = Numeric.FLOAT32
    source_digest: str = ""
    """Digest of what the attack uses besides the defense: the surrogate that a transfer attack
    queries, or the training half that a shared point is fitted to. Empty for other attacks."""
    before: str = ""
    """Key of the cell before this one in a cascade; empty for the first, and in full mode."""
    protocol: int = PROTOCOL

    @property
    def key(self) -> str:
        """Digest of the inputs; names are no part of it, so a renamed plugin keeps its cells."""
        named = asdict(self)
        # Without a cell before it the key is the one from before cascades existed.
        for name in ("threat", "defense", "attack", *([] if self.before else ["before"])):
            del named[name]
        return digest(named)


CLEAN = "clean"
"""Attack name of the clean pass: the model on the unchanged images."""


COSTLY_FORWARDS = 20
"""Forward passes per answer above which a defense is evaluated on FEW_EXAMPLES."""


FEW_EXAMPLES = 128
"""Examples on which a costly defense is evaluated."""
