"""Trainings: each is done once, by whichever worker holds its lease; the others wait."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.events import said
from bench.plugin import Dataset
from bench.registry import Registry
from bench.shelf import NeedsTraining, learn
from bench.store import Store


def teach(
    registry: Registry, store: Store, owner: str, need: NeedsTraining, dataset: Dataset,
    device: torch.device, tell: Callable[[str], None],
) -> bool:  # fmt: skip
    """Train once; False where another worker is at it.

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
        learn(
            registry, need.name, dataset, device=device, beat=store.beats(lease),
            progress=lambda progress: tell(f"{need.name}: {said(progress)}"),
        )  # fmt: skip
    except BaseException:
        store.release(lease)
        raise
    store.finish_task(lease)
    return True
