"""A training under way: what the loop holds from one epoch to the next, and how it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.data import datasets
from bench.plugin import Attack, Dataset, FreeTraining, InnerAttack, Recipe, TrainingBatch
from bench.registry.registry import Registry
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import name_to_int64
from bench.training.recipes import checked_recipe, inner_attack
from bench.training.weights_cache import WeightsFiles

OVERFITTING_DROP = 0.2  # under the best watched share so far: catastrophic overfitting


class EpochReport(NamedTuple):
    """What one epoch came to."""

    epoch: int
    """Epochs done."""
    epochs: int
    loss: float
    """Mean over the epoch."""
    clean: float
    """Share of the epoch's last batch that is right after it, in eval mode."""
    robust: float | None
    """The same of what the inner attack had made of that batch; None without one."""
    watched: float | None = None
    """Share of the watched images that hold against the recipe's `watch`; None without one."""
    gradients: int = 0
    """Gradients in this epoch: one an image for each pass backward, of the loss or of an attack."""


class ResolvedAttack(NamedTuple):
    """An attack inside training, resolved."""

    attack: Attack
    ball: PerturbationSet
    counted: bool = True
    """Whether its gradients are part of the training's price."""


@dataclass
class TrainingState:
    """All that decides how a training goes on."""

    name: str
    recipe: Recipe
    foe: ResolvedAttack | None
    """The inner attack."""
    rival: ResolvedAttack | None
    """The attack on the teacher."""
    guard: ResolvedAttack | None
    """The attack of the watch."""
    teacher: nn.Module | None
    images: Tensor
    """The training half, uint8 [n, C, H, W], on the device."""
    labels: Tensor
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    mixed: bool
    carried: Tensor
    """[batch, C, H, W]: the perturbation of Free training; empty elsewhere."""
    history: list[EpochReport] = field(default_factory=list)
    """One entry for each epoch done."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the best watched epoch so far; empty without a watch."""
    tally: Counter[str] = field(default_factory=Counter)
    """`gradients` of the epoch in hand."""

    @property
    def loss(self) -> Callable[[TrainingBatch], Tensor]:
        """The recipe's loss; PluginError where it has none."""
        if self.recipe.loss is None:
            raise PluginError(f"{self.name} has no loss to learn.")
        return self.recipe.loss

    @property
    def arithmetic(self) -> str:
        """What the epochs of one training must share: the precision, and the kind of device."""
        return f"{'bfloat16' if self.mixed else 'float32'} on {self.device.type}"

    @property
    def collapsed(self) -> bool:
        """The last epoch lost what an earlier one had."""
        shares = [entry.watched for entry in self.history if entry.watched is not None]
        return bool(shares) and shares[-1] < max(shares) - OVERFITTING_DROP

    @property
    def over(self) -> bool:
        """There is no epoch left to teach."""
        return len(self.history) >= self.recipe.epochs or self.collapsed


def initial_state(
    registry: Registry,
    name: str,
    dataset: Dataset,
    teacher: nn.Module | None,
    device: torch.device,
    mixed: bool,
) -> TrainingState:
    """A course before its first epoch."""
    recipe = checked_recipe(registry.find("defense", name).value)
    half = datasets.load_dataset(dataset).train
    if half is None:
        raise UnavailableError(
            f"{name} is to be trained on {dataset.name}, of which only the test half is in "
            f"{datasets.data_folder()}; add the training half's files there."
        )
    if bool(recipe.teacher) != (teacher is not None):
        raise PluginError(
            f"{name} names the teacher {recipe.teacher!r}; "
            + ("a module came." if teacher else "none came.")
        )
    with seeded(f"{recipe.seed} model", torch.device("cpu")):
        model = recipe.model(dataset.shape, len(dataset.classes)).to(device)
    taught = [p for p in model.parameters() if p.requires_grad]
    rows = recipe.batch if isinstance(recipe.inner, FreeTraining) else 0
    return TrainingState(
        name,
        recipe,
        foe=None
        if isinstance(recipe.inner, FreeTraining)
        else resolve_attack(registry, recipe.inner),
        rival=resolve_attack(registry, recipe.transfer),
        guard=resolve_attack(registry, recipe.watch, counted=False),
        teacher=teacher and teacher.to(device),
        images=torch.tensor(half.images, device=device),
        labels=torch.tensor(half.labels, device=device),
        model=model,
        optimiser=OPTIMISERS[recipe.optimiser](taught, recipe),
        device=device,
        mixed=mixed,
        carried=torch.zeros(rows, *dataset.shape, device=device),
    )


def resolve_attack(
    registry: Registry, inner: InnerAttack | None, *, counted: bool = True
) -> ResolvedAttack | None:
    """The attack, found."""
    return (
        ResolvedAttack(inner_attack(registry, inner).value, inner.ball, counted) if inner else None
    )


OPTIMISERS: dict[str, Callable[[list[nn.Parameter], Recipe], torch.optim.Optimizer]] = {
    "adam": lambda taught, recipe: torch.optim.Adam(
        [{"params": taught}], recipe.rate, weight_decay=recipe.weight_decay
    ),
    "sgd": lambda taught, recipe: torch.optim.SGD(
        [{"params": taught}], recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay
    ),
}


@contextmanager
def seeded(name: str, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded by a name, and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.random.manual_seed(seed_from_name(name))
        yield


def seed_from_name(name: str) -> int:
    """A seed from a name."""
    return name_to_int64(name) % 2**63


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, on the CPU."""
    state: dict[str, Tensor] = model.state_dict()
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def load_checkpoint(course: TrainingState, checkpoint: Path) -> None:
    """Take up the state after the last whole epoch, if there is one, in its own arithmetic."""
    if not checkpoint.exists():
        return
    try:
        state = torch.load(checkpoint, map_location=course.device, weights_only=True)
        begun = state["arithmetic"]
        if begun == course.arithmetic:
            course.model.load_state_dict(state["model"])
            course.optimiser.load_state_dict(state["optimiser"])
            course.carried, course.best = state["carried"], state["best"]
            course.history = [EpochReport(*entry) for entry in state["history"]]
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise BenchError(
            f"{checkpoint} cannot be read ({error}); delete it to begin that training again."
        ) from error
    if begun != course.arithmetic:
        raise BenchError(
            f"{checkpoint} was begun in {begun}, and {course.arithmetic} was asked for; go on as "
            "it was begun, or delete it to begin that training again."
        )


def save_checkpoint(course: TrainingState, checkpoint: Path) -> None:
    """Write the state after an epoch: a kill costs at most the epoch in hand."""
    state = {
        "arithmetic": course.arithmetic,
        "model": course.model.state_dict(),
        "optimiser": course.optimiser.state_dict(),
        "carried": course.carried,
        "best": course.best,
        "history": [tuple(entry) for entry in course.history],
    }
    write_atomically(checkpoint, lambda path: torch.save(state, path))


def save_weights(course: TrainingState, stock: WeightsFiles) -> bytes:
    """Write the weights, then their record, then drop the checkpoint; the weights file."""
    content = safetensors.torch.save(weights_of(course.model))
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "defense": course.name,
        "device": str(course.device),
        "mixed": course.mixed,
        "torch": torch.__version__,
        "finished": time.time(),
        "collapsed": course.collapsed,
        "history": [entry._asdict() for entry in course.history],
    }
    write_atomically(stock.weights, lambda path: path.write_bytes(content))
    write_atomically(stock.record, lambda path: path.write_text(json.dumps(record, indent=1)))
    stock.checkpoint.unlink(missing_ok=True)
    return content


def write_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """The whole file or none: written beside, flushed to the disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def epoch_line(progress: EpochReport) -> str:
    """One epoch as a line."""
    robust = "" if progress.robust is None else f", robust {progress.robust:.0%}"
    watched = "" if progress.watched is None else f", watched {progress.watched:.0%}"
    return (
        f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.4f}, "
        f"clean {progress.clean:.0%}{robust}{watched}"
    )
