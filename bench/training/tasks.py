"""Trains what a defense needs, teachers first; under a lease where there is a database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from bench.core.errors import StorageError
from bench.plugin import Dataset
from bench.registry.registry import Registry
from bench.store import LeaseLostError, Store
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.loop import EpochListener, train_weights
from bench.training.state import format_epoch
from bench.training.trained_weights import WeightsSource


def train_with_teacher(
    registry: Registry,
    name: str,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    source: WeightsSource | None = None,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: EpochListener | None = None,
    heartbeat: Callable[[], None] | None = None,
) -> str:
    """Train a defense, and before it what its teacher lacks; arguments as `train_weights`.

    `source` is where the weights of the teacher are found; None: in the folder.
    """
    builder = DefenseBuilder(registry, name, dataset, folder, source=source)
    folder = builder.source.folder
    while True:
        try:
            teacher = builder.teacher()
        except NeedsTraining as need:
            train_with_teacher(
                registry, need.name, dataset, source=builder.source,
                device=device, mixed=mixed, progress=progress, heartbeat=heartbeat,
            )  # fmt: skip
        else:
            return train_weights(
                registry, name, dataset, teacher=teacher,
                folder=folder, device=device, mixed=mixed, progress=progress, heartbeat=heartbeat,
            )  # fmt: skip


def build_trained(
    registry: Registry,
    name: str,
    dataset: Dataset,
    folder: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: Callable[[str], EpochListener] | None = None,
) -> DefenseBuilder:
    """The builder of a defense, after training every missing weights file that its build needs.

    `progress` maps the name of a trained defense to the function called after each epoch.
    """
    while True:
        builder = DefenseBuilder(registry, name, dataset, folder)
        try:
            builder.complete()
        except NeedsTraining as need:
            report = progress(need.name) if progress else None
            train_with_teacher(
                registry, need.name, dataset,
                folder=folder, device=device, mixed=mixed, progress=report,
            )  # fmt: skip
        else:
            return builder


def training_task(recipe: str) -> str:
    """The name of the task under whose lease a recipe is trained."""
    return f"weights:{recipe}"


def train_once(
    registry: Registry, store: Store, owner: str, need: NeedsTraining, dataset: Dataset,
    device: torch.device, report: Callable[[str], None],
) -> bool:  # fmt: skip
    """Train under a lease of the database, which gets the weights.

    False where another worker holds or took over the lease. `report` is called with one line of
    text per epoch.
    """
    source = WeightsSource(store=store)
    lease = store.lease_task(training_task(need.recipe), owner)
    if lease is None:
        return False
    try:
        if store.weights_digest(need.recipe) is not None:  # since the caller looked
            store.release(lease)
            return True
        train_with_teacher(
            registry, need.name, dataset, source=source, device=device,
            heartbeat=store.heartbeats(lease),
            progress=lambda epoch: report(f"{need.name}: {format_epoch(epoch)}"),
        )  # fmt: skip
        source.commit(need.recipe, lease)
    except LeaseLostError:
        return False
    except BaseException:
        with suppress(LeaseLostError, StorageError), store.without_waiting():
            store.release(lease)
        raise
    return True
