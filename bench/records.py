"""What travels between the stages: plain frozen records, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

PROTOCOL = 1
"""Version of the rules of play. A change that may move a verdict moves this number."""

SCHEMA = 1
"""Version of every JSON document that a command prints."""


MODES = ("full", "rank")
"""Every attack meets every example; or, in a cascade, the survivors of the attacks before it."""


class BenchError(Exception):
    """A mistake with a sentence: what came, what was expected, what to do."""

    exit_code = 2


class PluginError(BenchError):
    """A plugin did what its contract forbids. The cell fails, the matrix goes on."""

    exit_code = 3


class UnfitError(BenchError):
    """The environment cannot do this: no device, no folder, a database from the future."""

    exit_code = 5


class Access(IntEnum):
    """What the attacker may ask of the defense. Each level contains the ones below it."""

    NOTHING = 0
    LABELS = 1
    SCORES = 2
    GRADIENTS = 3


class Numeric(StrEnum):
    """In which arithmetic the attacks ask a defense; successes are confirmed in float32 always."""

    FLOAT32 = "float32"
    """As it was built."""
    FAST = "fast"
    """float32, rearranged: BatchNorm folded, channels last."""
    BFLOAT16 = "bfloat16"
    """The same, with products in bfloat16; survivors are audited in float32 by sample."""


class Verdict(IntEnum):
    """What the referee found for one attempt."""

    HELD = 0
    BROKEN = 1
    OUT_OF_BALL = 2
    OUT_OF_BOX = 3
    NOT_FINITE = 4


NO_ANSWER = -1
"""The label of an image that got no finite answer."""

REJECTED = -2
"""The label of an image that a defense refused to classify."""


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
class Budget:
    """What the attacker may spend on one example; None is without limit."""

    gradients: int | None = None
    queries: int | None = None
    """Forward passes of the attack, those that carry a gradient included."""


@dataclass(frozen=True)
class Claim:
    """A defense author's robust accuracy under a named threat model."""

    threat: str
    robust: float
    """Share of all examples that stay right, 0 to 1."""
    cite: str = ""


@dataclass(frozen=True)
class Count:
    """k of n, with its 95 % Wilson interval as fractions."""

    k: int
    n: int
    low: float
    high: float


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

HEAVY = 20
"""Passes of the network for one answer, above which a defense is played on FEW examples."""
FEW = 128


class Outcomes(NamedTuple):
    """What the referee found and what it cost: parallel arrays, one entry an item."""

    item: npt.NDArray[np.int32]
    verdict: npt.NDArray[np.uint8]
    """Codes of `Verdict`."""
    eight_bit: npt.NDArray[np.bool_]
    """Still broken after rounding each pixel to k/255 towards the clean one."""
    fragile: npt.NDArray[np.bool_]
    """Broken by a margin under 1e-4 of the logit scale."""
    distance: npt.NDArray[np.float64]
    """From the clean image, in the norm of the perturbation set."""
    label: npt.NDArray[np.int16]
    """What the referee's fresh defense answered, rejected or not; -1 where it gave no finite
    answer."""
    confidence: npt.NDArray[np.float32]
    """Softmax of that answer."""
    forwards: npt.NDArray[np.int32]
    """Forward passes the attack asked for, up to its first success."""
    gradients: npt.NDArray[np.int32]
    looks: npt.NDArray[np.int32]
    """Forwards the harness added: one for each run's last iterate."""
    step: npt.NDArray[np.int32]
    """Steps done before the first success (queries, in a run of its own); -1 where it held."""
    run: npt.NDArray[np.int32]
    """The restart or target of the first success; -1 where the item held."""
    rejection: npt.NDArray[np.float32]
    """The rejection score of the judged image less its threshold: rejected where positive. -inf
    where there is none: the defense never rejects, or the referee refused the image."""

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """Join chunks, in item order."""
        if not parts:
            return cls._make(np.zeros(0, dtype=kind) for kind in OUTCOME_DTYPES)
        joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        return cls._make(column[order] for column in joined)

    def survivors(self) -> list[int]:
        """The items that were not broken, in order."""
        held: list[int] = self.item[self.verdict != Verdict.BROKEN].tolist()
        return held


OUTCOME_DTYPES = (
    np.int32, np.uint8, np.bool_, np.bool_, np.float64, np.int16,
    np.float32, np.int32, np.int32, np.int32, np.int32, np.int32, np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class KeptImage:
    """One adversarial image for the pages, with its original."""

    item: int
    original: npt.NDArray[np.uint8]
    """[C, H, W]."""
    adversarial: npt.NDArray[np.float32]
    """[C, H, W] in [0, 1]."""
    true_label: int
    clean_label: int
    clean_confidence: float
    label: int
    confidence: float


@dataclass(frozen=True)
class Chunk:
    """What is committed at once: finished items, and the images kept of them."""

    outcomes: Outcomes
    seconds: float
    """CPU seconds since the chunk before."""
    images: tuple[KeptImage, ...] = ()
    exact: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None = None
    """Items and their images [n, C, H, W] where every image is kept."""

    def without(self, items: Collection[int]) -> Chunk:
        """The same without these items; its seconds stay, for they were spent."""
        kept = ~np.isin(self.outcomes.item, list(items))
        exact = self.exact
        return Chunk(
            Outcomes._make(column[kept] for column in self.outcomes),
            self.seconds,
            tuple(image for image in self.images if image.item not in items),
            None if exact is None else (exact[0][kept], exact[1][kept]),
        )


@dataclass(frozen=True)
class Card:
    """What a plugin says of itself; all that `list` and the pages need to show it."""

    kind: str
    """`attack`, `defense`, `threat`, `dataset`, `certifier` or `diagnostic`."""
    name: str
    origin: str
    """`built-in`, `entry-point` or `submission`."""
    digest: str = ""
    cite: str = ""
    summary: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Parameters, claims, declared randomness and the like, as JSON values."""


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: the same text for the same content."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()
