"""Training tasks: each recipe is trained once, under a lease where there is a database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from bench.plugin import Dataset
from bench.registry.registry import Registry
from bench.store import LeaseLostError, Store
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.loop import EpochListener, train
from bench.training.state import epoch_line


def train_with_teacher(
    registry: Registry,
    name: str,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: EpochListener | None = None,
    beat: Callable[[], None] | None = None,
) -> str:
    """`train` with the recipe's teacher built; what that lacks is trained first, deepest first."""
    loader = DefenseBuilder(registry, name, dataset, folder)
    while True:
        try:
            teacher = loader.teacher()
        except NeedsTraining as need:
            train_with_teacher(
                registry, need.name, dataset,
                folder=folder, device=device, mixed=mixed, progress=progress, beat=beat,
            )  # fmt: skip
        else:
            return train(
                registry, name, dataset, teacher=teacher,
                folder=folder, device=device, mixed=mixed, progress=progress, beat=beat,
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
    """A loader with its digest known: trains whatever the build asks for, deepest first.

    `progress` gets the name of what is trained and gives the function that is told of each epoch.
    """
    while True:
        loader = DefenseBuilder(registry, name, dataset, folder)
        try:
            loader.complete()
        except NeedsTraining as need:
            tell = progress(need.name) if progress else None
            train_with_teacher(
                registry, need.name, dataset,
                folder=folder, device=device, mixed=mixed, progress=tell,
            )  # fmt: skip
        else:
            return loader


def train_once(
    registry: Registry, store: Store, owner: str, need: NeedsTraining, dataset: Dataset,
    device: torch.device, tell: Callable[[str], None],
) -> bool:  # fmt: skip
    """Train once; False where another worker is at it, or has taken over.

    `tell` hears a sentence for each epoch.
    """
    task = f"train:{need.recipe}"
    lease = store.lease_task(task, owner)
    if lease is None and store.task_done(task):
        # The database knows of a training whose weights this machine does not have.
        lease = store.lease_task(f"{task}:{owner}", owner)
    if lease is None:
        return False
    try:
        train_with_teacher(
            registry, need.name, dataset, device=device, beat=store.beats(lease),
            progress=lambda progress: tell(f"{need.name}: {epoch_line(progress)}"),
        )  # fmt: skip
        store.finish_task(lease)
    except LeaseLostError:
        return False
    except BaseException:
        with suppress(LeaseLostError):
            store.release(lease)
        raise
    return True
