"""Trainings: each is done once, by whichever worker holds its lease; the others wait."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch

from bench.events import said
from bench.plugin import Dataset
from bench.registry import Registry
from bench.shelf import NeedsTraining, learn
from bench.store import LeaseLostError, Store


def teach(
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
        learn(
            registry, need.name, dataset, device=device, beat=store.beats(lease),
            progress=lambda progress: tell(f"{need.name}: {said(progress)}"),
        )  # fmt: skip
        store.finish_task(lease)
    except LeaseLostError:
        return False
    except BaseException:
        with suppress(LeaseLostError):
            store.release(lease)
        raise
    return True
