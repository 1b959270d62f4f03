"""Contract of an external attack: one call of `run`, for libraries and attacks on many examples."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bench.threats.access import Access, Budget
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import RandomNumbers


class Model(Protocol):
    """The defense as an `nn.Module` that counts queries and limits access.

    Every queried image is counted, and is a candidate where it reaches the goal inside the set.
    Access is that of the threat model: with labels only, logits are one-hot and have no graph; with
    scores they have no graph. Beyond the budget a call ends the run, by a BaseException that
    `except Exception` does not catch.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [b, K] of float32 images [b, C, H, W], with a graph where access allows.

        With `rows = 1` all b images belong to the one example. Otherwise b must be the number of
        examples, in order, or `for_rows` names the examples.
        """

    def for_rows(self, rows: Tensor) -> AbstractContextManager[None]:
        """A context in which queried images belong to the examples `rows` [b] int64, each once."""


class ExternalProblem(RandomNumbers, Protocol):
    """What `run` sees: a batch of examples, one per row."""

    x: Tensor
    """[n, C, H, W]: the clean images."""
    y: Tensor
    """[n] int64: the true labels."""
    target: Tensor
    """[n] int64: the declared target classes of a targeted goal; -1 for other goals."""
    ball: PerturbationSet
    classes: int
    """K, the number of classes."""
    budget: Budget
    """Queries and gradient evaluations allowed per example."""

    @property
    def model(self) -> Model:
        """The defense."""

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform int64 [n, *shape] in [0, high), keyed like `uniform`."""


class ExternalAttack(Protocol):
    """An attack with a loop of its own, such as one from another library.

    `run` is called for batches of `rows` examples in index order (default EXTERNAL_BATCH; 1: one by
    one; 0: all at once); the last example is repeated up to a multiple of 32. The global random
    generators of torch, numpy and python are seeded before each call and restored after it.
    Optional, besides the attributes of `Traits`: `prepare()`, called once before the first run, for
    imports.
    """

    @property
    def needs(self) -> Access:
        """The access it needs; it gets no more, even where the threat model allows more."""

    @property
    def name(self) -> str:
        """Unique name of lower-case letters, digits, '.', '_' and '-'."""

    def run(self, problem: ExternalProblem) -> Tensor:
        """Attack the problem; returns candidates [n, C, H, W], float32.

        They are candidates in addition to the queried images; which of them succeed is verified.
        """


EXTERNAL_BATCH = 64
"""How many examples one call of `ExternalAttack.run` gets by default."""


@dataclass(frozen=True)
class MissingLibrary:
    """Registered in place of a plugin whose library is not installed.

    It is not listed; naming it gives a message with the extra to install.
    """

    name: str
    library: str
    extra: str = "peers"
    """The extra of this project that installs the library."""
