"""Contract of an attack that makes one point for all images, fitted to training images."""

from __future__ import annotations

from typing import Protocol, TypeGuard

from torch import Tensor

from bench.plugin.attack import Problem
from bench.threats.access import Access
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import RandomNumbers


class SharedProblem(Protocol):
    """What `fit` sees: the images of the training half, and the defense. No test image is there."""

    count: int
    """Number of training images."""
    classes: int
    """K, the number of classes."""
    ball: PerturbationSet
    """The perturbation set; a parametric one."""

    @property
    def draws(self) -> RandomNumbers:
        """Keyed random numbers of one row, for the point: [1, *shape]."""

    @property
    def start(self) -> Tensor:
        """The point [1, ...] of clean images."""

    def order(self, epoch: int) -> Tensor:
        """The numbers of all training images [count] int64 in a keyed order of that epoch."""

    def rows(self, index: Tensor, draw: int = 1) -> Problem:
        """The training images `index` [n] int64 as a problem: its queries are those of the fit.

        `draw` numbers the draw of what the set draws for each image, such as the place of a patch;
        the referee has draw 0. Repeat a point with `expand` to query it for every row.
        """


class SharedAttack(Protocol):
    """An attack that fits one point to the training half; every test example gets that point.

    Optional attributes are those of `Traits`; `coordinates`, `norms` and `goals` say where it
    works. It applies under threat models of scope `shared` alone.
    """

    @property
    def needs(self) -> Access:
        """The access it needs; it gets no more, even where the threat model allows more."""

    @property
    def name(self) -> str:
        """Unique name of lower-case letters, digits, '.', '_' and '-'."""

    def fit(self, problem: SharedProblem) -> Tensor:
        """The point [1, ...] of the set, float32. The global random generators are seeded."""


def is_shared(attack: object) -> TypeGuard[SharedAttack]:
    """Whether an attack makes one point for all images: `fit` instead of `start` and `step`."""
    return hasattr(attack, "fit") and not hasattr(attack, "step")
