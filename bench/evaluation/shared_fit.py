"""Fits the one point of a shared attack to the training half, and keeps it with its cost."""

from __future__ import annotations

import torch

from bench.core.cpu_time import cpu_seconds
from bench.core.errors import UnavailableError
from bench.core.fitted import FittedPoint
from bench.data import datasets
from bench.data.image_rows import clean_images
from bench.engine.machine import this_machine
from bench.engine.shared_point import TrainingImages, fit_point
from bench.evaluation.built_defense import BuiltDefense
from bench.evaluation.cell_task import CellTask
from bench.evaluation.plan import PlannedPair
from bench.evaluation.surrogate_model import Heartbeat
from bench.plugin import SharedAttack, Split, is_shared
from bench.store import Lease, Store
from bench.threats.parametric import ParametricSet


def fitted_point(pair: PlannedPair, built: BuiltDefense, heartbeat: Heartbeat) -> FittedPoint:
    """The point that the shared attack of a pair fits, with its cost.

    Raises UnavailableError where the data set has no training half, PluginError where the attack
    returns no point of the set.
    """
    half = datasets.load_dataset(built.dataset).train
    if half is None or not len(half.labels):
        raise UnavailableError(
            f"{pair.attack.name} fits a point to training images, and {built.dataset.name} has "
            "none: choose a data set with a training half."
        )
    attack, ball = pair.attack, pair.threat.ball
    assert is_shared(attack) and isinstance(ball, ParametricSet)
    return _fitted(attack, ball, built, half, heartbeat, pair)


def _fitted(
    attack: SharedAttack, ball: ParametricSet, built: BuiltDefense, half: Split,
    heartbeat: Heartbeat, pair: PlannedPair,
) -> FittedPoint:  # fmt: skip
    since, device = cpu_seconds(), built.settings.device
    access = built.fit_access(pair.threat, pair.attack)
    training = TrainingImages(
        access, ball, clean_images(half.images, device),
        torch.tensor(half.labels, device=device), classes=len(built.dataset.classes),
        seed=built.seed, name=attack.name, heartbeat=heartbeat,
    )  # fmt: skip
    point = fit_point(attack, training, access)
    return FittedPoint(
        point=point.cpu().numpy(),
        training=datasets.training_digest(built.dataset),
        forwards=training.forwards,
        gradients=training.gradients,
        seconds=cpu_seconds() - since,
        machine=this_machine(device),
    )


def recorded_fit(store: Store, lease: Lease, task: CellTask) -> FittedPoint | None:
    """The stored point of a cell; it is fitted and stored where there is none yet.

    None for attacks that make a point for each example.
    """
    if not is_shared(task.pair.attack):
        return None
    known = store.fit(lease.key)
    if known is None:
        known = fitted_point(task.pair, task.defense, store.heartbeats(lease))
        store.record_fit(lease, known)
    return known
