"""Step e: images a second in adversarial training, on random images of the shape of CIFAR-10."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from bench.plugin import Dataset, Images, Split
from bench.training.loop import train_batch
from bench.training.state import TrainingState, initial_state
from tests.benchmarks import our_runs
from tests.benchmarks.device_steps.step import Step
from tests.benchmarks.unit_cost import now

RECIPES = ("cifar-fast", "cifar-pgd")
WARM_UP_BATCHES = 2


def run(step: Step) -> None:
    """Time batches of the Fast and the PGD recipe, in float32 and in mixed precision."""
    seconds = 0.0
    for name in RECIPES:
        for mixed in (False, True):
            arithmetic = "bfloat16 by autocast" if mixed else "float32"
            if not step.fits(f"{name}, {arithmetic}", 2 * seconds):
                continue
            since = time.monotonic()
            state = random_state(name, step, mixed=mixed)
            rate = images_per_second(state, step)
            peak = None
            if step.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(step.device) / 2**20
            step.add(
                recipe=name, arithmetic=arithmetic, batch=state.recipe.batch,
                images_per_second=rate, epoch_seconds=50_000 / rate, peak_mib=peak,
            )  # fmt: skip
            seconds = time.monotonic() - since


def random_state(name: str, step: Step, *, mixed: bool) -> TrainingState:
    """The first state of a recipe's training on random images."""
    registry, size = our_runs.registry(), step.size
    count = size.training_batch * (size.training_batches + WARM_UP_BATCHES)
    numbers = np.random.default_rng(0)
    half = Split(
        numbers.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
        numbers.integers(0, 10, count),
    )
    images = Images(half, half, np.arange(count))
    classes = tuple(str(label) for label in range(10))
    dataset = Dataset("random", classes, (3, 32, 32), lambda folder: images, count)
    state = initial_state(registry, name, dataset, None, step.device, mixed)
    state.recipe = replace(state.recipe, batch=size.training_batch)
    return state


def images_per_second(state: TrainingState, step: Step) -> float:
    """Images a second over the batches after the first ones."""
    batch, since = state.recipe.batch, 0.0
    rows = torch.split(torch.arange(len(state.labels), device=step.device), batch)
    warm_up = min(WARM_UP_BATCHES, len(rows) - step.size.training_batches)
    with torch.random.fork_rng([]):
        for number, part in enumerate(rows):
            if number == warm_up:
                since = now(step.device)
            train_batch(state, part, 0, 0.5)
    return batch * (len(rows) - warm_up) / (now(step.device) - since)
