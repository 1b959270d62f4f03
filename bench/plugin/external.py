"""The other kind of attack: a run of its own, for libraries and whatever must see all examples."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bench.threats.access import Access, Budget
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import RandomNumbers


class Model(Protocol):
    """The defense as a library sees it: an `nn.Module` behind a guard.

    Every image asked is counted and, where it reaches the goal inside the set, kept as a success.
    What the board hides stays hidden: under labels the answer is one-hot and without a graph, under
    scores it is without a graph. Over budget it raises what no `except Exception` catches.
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [b, K] of float32 images [b, C, H, W]; their gradient where the board gives it.

        One row a problem: all b images are that row's. Else b is the number of rows, in order.
        """

    def for_rows(self, rows: Tensor) -> AbstractContextManager[None]:
        """While this lasts, the images asked about are those of `rows` [b] int64, each once."""


class ExternalProblem(RandomNumbers, Protocol):
    """What `run` sees: some or all examples at once. Each row is one example."""

    x: Tensor
    """[n, C, H, W] clean images."""
    y: Tensor
    """[n] int64: the true label."""
    target: Tensor
    """[n] int64: the declared target on targeted boards; -1 elsewhere."""
    ball: PerturbationSet
    classes: int
    budget: Budget
    """What each row may spend in all."""

    @property
    def model(self) -> Model:
        """The only way to the defense."""

    def integers(self, name: str, high: int, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape] keyed int64 in [0, high)."""


class ExternalAttack(Protocol):
    """A run of its own over whatever the harness offers: foreign libraries, one patch for all.

    The harness offers closed sets of `rows` examples in index order (`ROWS` unless said otherwise;
    1: one by one; 0: all of them), the last row repeated up to a multiple of 32. Global generators
    of torch, numpy and python are seeded for each and put back. Optional, beside those of
    `Attack` that apply: `rows`, and `prepare()`, called once before the first run (imports).
    """

    @property
    def needs(self) -> Access:
        """What it must be shown; a board that shows more shows it no more than this."""

    @property
    def name(self) -> str:
        """Lower case, digits, '.', '_', '-'; unique."""

    def run(self, problem: ExternalProblem) -> Tensor:
        """The images [n, C, H, W], float32. What it claims of them is not asked."""


EXTERNAL_BATCH = 64
"""How many examples a `ExternalAttack` is offered at once, unless it says otherwise."""


@dataclass(frozen=True)
class MissingLibrary:
    """Offered in place of something that this environment lacks a library for.

    It is not listed; who asks for it by name is told what to install.
    """

    name: str
    library: str
    extra: str = "peers"
