"""Trainings: each is done once, by whichever worker holds its lease; the others wait."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.events import said
from bench.plugin import Dataset
from bench.registry import Registry
from bench.shelf import NeedsTraining, learn
from bench.store import Lease, Store

BEAT = 5.0  # seconds between extensions of a training's lease
POLL = 0.2  # seconds between looks at a training that somebody else holds


def teach(
    registry: Registry, store: Store, owner: str, need: NeedsTraining, dataset: Dataset,
    device: torch.device, tell: Callable[[str, str], None],
) -> None:  # fmt: skip
    """Train once; a worker that finds it in other hands waits a moment and returns.

    `tell` hears (kind, sentence): `train` for each epoch, `wait` where another worker is at it.
    """
    task = f"train:{need.recipe}"
    lease = store.lease_task(task, owner)
    if lease is None and store.task_done(task):
        # The database knows of a training whose weights this machine does not have.
        lease = store.lease_task(f"{task}:{owner}", owner)
    if lease is None:
        tell("wait", f"{need.name} is being trained by another worker")
        time.sleep(POLL)
        return
    try:
        learn(
            registry, need.name, dataset, device=device, beat=beats(store, lease),
            progress=lambda progress: tell("train", f"{need.name}: {said(progress)}"),
        )  # fmt: skip
    except BaseException:
        store.release(lease)
        raise
    store.finish_task(lease)


def beats(store: Store, lease: Lease) -> Callable[[], None]:
    """Extends the lease now and then, however often it is called."""
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT:
            store.heartbeat(lease)
            last = time.monotonic()

    return beat
