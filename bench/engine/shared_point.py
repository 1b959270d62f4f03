"""Runs attacks that fit one point to the training half, and offers it for every example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.core.batches import FRESH_ROWS
from bench.core.errors import PluginError
from bench.data.image_rows import CleanImages
from bench.engine.attack_view import view_of
from bench.engine.cell_spec import Candidates, CellSpec, Confirm
from bench.engine.external_model import isolated_random_state
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.engine.values import description
from bench.plugin import Problem, SharedAttack
from bench.threats.access import Budget
from bench.threats.parametric import ParametricSet
from bench.threats.random_numbers import KeyedRandomNumbers, example_key, name_to_int64
from bench.threats.threat_model import Goal

FIT_GROUP = -1  # noise group of a declared-random defense while a point is fitted
LOGIT_ROWS = 256  # training images whose clean logits are computed at once


class TrainingImages:
    """The SharedProblem of `bench.plugin` over a training half, which is not padded.

    Args:
        model_access: the defense, as far as the attack may see it.
        ball: the perturbation set.
        images: [m, C, H, W] training images.
        labels: [m] int64.
        classes: K.
        seed: of the evaluation cell.
        name: of the attack.
        heartbeat: called whenever rows are requested.
    """

    def __init__(
        self, model_access: ModelAccess, ball: ParametricSet, images: CleanImages, labels: Tensor,
        *, classes: int, seed: int, name: str, heartbeat: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.ball, self.classes, self.count = ball, classes, len(labels)
        self._model_access, self._images, self._labels = model_access, images, labels
        self._seed, self._name, self._heartbeat = seed, name, heartbeat
        self._ledgers: list[QueryLedger] = []
        self._clean = torch.full((self.count, classes), torch.nan, device=labels.device)
        self._clean_forwards = 0

    @property
    def draws(self) -> KeyedRandomNumbers:
        """Keyed random numbers of one row."""
        first = torch.zeros(1, dtype=torch.int64, device=self._labels.device)
        return KeyedRandomNumbers(example_key(self._seed, self._name, first - 1, first), first)

    @property
    def start(self) -> Tensor:
        """The point [1, ...] of clean images."""
        return self.ball.start(self._images[:1])

    def order(self, epoch: int) -> Tensor:
        """All training images [count] int64 in a keyed order of an epoch."""
        index = torch.arange(self.count, device=self._labels.device)
        key = example_key(self._seed, self._name, index, torch.full_like(index, epoch))
        return key.argsort()

    def rows(self, index: Tensor, draw: int = 1) -> Problem:
        """The training images `index` [n] int64; raises PluginError where they are none."""
        self._heartbeat()
        if index.dtype is not torch.int64 or index.dim() != 1 or not len(index):
            raise PluginError(
                f"{self._name} asked for the training images {description(index)}; numbers"
                " torch.int64 [n] were expected: give at least one."
            )
        if draw < 1:
            raise PluginError(
                f"{self._name} asked for draw {draw}; draw 0 is that of the referee: use 1 or more."
            )
        part = BatchProblem(
            self._model_access, self.ball.drawn(draw), Goal(), self._images[index],
            self._labels[index], target=torch.full_like(index, -1),
            clean_logits=self._clean_logits(index), example=index, seed=self._seed,
            name=self._name, budget=Budget(),
        )  # fmt: skip
        part.t = torch.full_like(index, draw)
        self._ledgers.append(part.ledger)
        return view_of(part)

    @property
    def forwards(self) -> int:
        """Queries so far, those for clean logits included."""
        return self._clean_forwards + sum(int(one.forwards.sum()) for one in self._ledgers)

    @property
    def gradients(self) -> int:
        """Gradient evaluations so far."""
        return sum(int(one.gradients.sum()) for one in self._ledgers)

    def _clean_logits(self, index: Tensor) -> Tensor:
        """Logits [n, K] of clean training images; each image is queried once."""
        missing = torch.unique(index[self._clean[index].isnan().any(1)])
        for part in missing.split(LOGIT_ROWS):
            answer = self._model_access.visible(self._model_access.logits(self._images[part]))
            self._clean[part] = answer[:, : self.classes]
            self._clean_forwards += len(part) * self._model_access.draws
        return self._clean[index]


def fit_point(attack: SharedAttack, training: TrainingImages, model_access: ModelAccess) -> Tensor:
    """The point [1, ...] that an attack fits to training images.

    Raises:
        PluginError: it returned no point of the perturbation set.
    """
    if model_access.noise is not None:
        model_access.noise.begin(FIT_GROUP)
    problem: Any = training  # its attributes are read-only, unlike those of the protocol
    with isolated_random_state(name_to_int64(f"{attack.name} fit")):
        point = attack.fit(problem)
    like = training.start
    if not isinstance(point, Tensor) or point.shape != like.shape or point.dtype != like.dtype:
        raise PluginError(
            f"{attack.name}.fit returned {description(point)}; one point {description(like)} was "
            "expected: return it with a first dimension of 1."
        )
    point = point.detach().clone()
    if not point.isfinite().all() or not training.ball.contains(point, training.start).all():
        far = float(training.ball.distance(point, training.start))
        raise PluginError(
            f"{attack.name}.fit returned a point at distance {far:.4g} of the clean image; the "
            f"radius is {training.ball.radius:.4g}: project it."
        )
    return point


def offer_point(
    spec: CellSpec, point: Tensor, confirm: Confirm, items: Collection[int]
) -> Iterator[Candidates]:
    """Yield the one point [1, ...] as the candidate of every item, in whole groups of rows.

    An item that is misclassified when clean gets the point too. The draws of a random defense
    belong to all rows of a group, which are then yielded too.
    """
    size = FRESH_ROWS if spec.noise is None else spec.noise.rows
    for group in sorted({item // size for item in items}):
        rows = range(group * size, min((group + 1) * size, len(spec.x)))
        wanted = [item for item in rows if item in items or spec.noise is not None]
        block = torch.tensor(wanted)
        spec.heartbeat()
        points = point.expand(len(block), *point.shape[1:]).clone()
        reached = confirm(block, points).cpu()
        zero = torch.zeros_like(block)
        step = torch.where(reached, zero, -1)
        yield Candidates(block, points, zero, zero, zero + 1, step, step, zero.double() + torch.inf)
