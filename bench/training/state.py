"""The state of a training between epochs, its checkpoints and the weights file it ends with."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.data import datasets
from bench.engine.machine import this_machine
from bench.plugin import Attack, Dataset, FreeTraining, InnerAttack, Recipe, TrainingBatch
from bench.registry.registry import Registry
from bench.threats.norms import PerturbationSet
from bench.threats.random_numbers import name_to_int64
from bench.training.recipes import checked_recipe, resolve_inner_attack
from bench.training.weights_cache import WeightsFiles

OVERFITTING_DROP = 0.2  # below the best monitored accuracy: catastrophic overfitting


class EpochReport(NamedTuple):
    """The figures of one epoch."""

    epoch: int
    """Number of epochs done, this one included."""
    epochs: int
    """Number of epochs of the recipe."""
    loss: float
    """Mean over all examples of the epoch."""
    clean: float
    """Accuracy on the epoch's last batch after its step, in eval mode."""
    robust: float | None
    """The same on that batch's adversarial images; None without an inner attack."""
    monitored: float | None = None
    """Robust accuracy under `Recipe.monitor` on the first training images; None without it."""
    gradients: int = 0
    """Gradient evaluations of this epoch, of the loss and of the attacks; one per image each."""


class ResolvedAttack(NamedTuple):
    """An attack inside training, resolved from its name."""

    attack: Attack
    ball: PerturbationSet
    counted: bool = True
    """Whether its gradient evaluations are counted in `EpochReport.gradients`."""


@dataclass
class TrainingState:
    """Everything that decides how a training continues."""

    name: str
    recipe: Recipe
    inner_attack: ResolvedAttack | None
    """`Recipe.inner`; None without one, and for Free training."""
    transfer_attack: ResolvedAttack | None
    """`Recipe.transfer`, the attack on the teacher."""
    monitoring_attack: ResolvedAttack | None
    """`Recipe.monitor`."""
    teacher: nn.Module | None
    images: Tensor
    """Training images, uint8 [n, C, H, W], on the device."""
    labels: Tensor
    """[n] labels."""
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    mixed: bool
    free_perturbation: Tensor
    """[batch, C, H, W] perturbation that Free training carries over; empty for other recipes."""
    history: list[EpochReport] = field(default_factory=list)
    """One report per finished epoch."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the epoch with the best monitored accuracy; empty without `Recipe.monitor`."""
    counts: Counter[str] = field(default_factory=Counter)
    """`gradients`: gradient evaluations of the current epoch."""

    @property
    def loss(self) -> Callable[[TrainingBatch], Tensor]:
        """The recipe's loss: a batch -> scalar or [n]; raises PluginError where there is none."""
        if self.recipe.loss is None:
            raise PluginError(f"{self.name} declares no loss.")
        return self.recipe.loss

    @property
    def arithmetic(self) -> str:
        """Precision and kind of device, which all epochs of one training share."""
        return f"{'bfloat16' if self.mixed else 'float32'} on {self.device.type}"

    @property
    def collapsed(self) -> bool:
        """Whether monitored accuracy dropped from its best: catastrophic overfitting."""
        shares = [entry.monitored for entry in self.history if entry.monitored is not None]
        return bool(shares) and shares[-1] < max(shares) - OVERFITTING_DROP

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return len(self.history) >= self.recipe.epochs or self.collapsed


def initial_state(
    registry: Registry,
    name: str,
    dataset: Dataset,
    teacher: nn.Module | None,
    device: torch.device,
    mixed: bool,
) -> TrainingState:
    """The state before the first epoch.

    Raises UnavailableError where the data set has no training half, PluginError where `teacher`
    does not agree with the recipe.
    """
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
            + ("a module was given." if teacher else "no module was given.")
        )
    with seeded_by_name(f"{recipe.seed} model", torch.device("cpu")):
        model = recipe.model(dataset.shape, len(dataset.classes)).to(device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    rows = recipe.batch if isinstance(recipe.inner, FreeTraining) else 0
    return TrainingState(
        name,
        recipe,
        inner_attack=None
        if isinstance(recipe.inner, FreeTraining)
        else resolve_attack(registry, recipe.inner),
        transfer_attack=resolve_attack(registry, recipe.transfer),
        monitoring_attack=resolve_attack(registry, recipe.monitor, counted=False),
        teacher=teacher and teacher.to(device),
        images=torch.tensor(half.images, device=device),
        labels=torch.tensor(half.labels, device=device),
        model=model,
        optimiser=OPTIMISERS[recipe.optimiser](trainable, recipe),
        device=device,
        mixed=mixed,
        free_perturbation=torch.zeros(rows, *dataset.shape, device=device),
    )


def resolve_attack(
    registry: Registry, inner: InnerAttack | None, *, counted: bool = True
) -> ResolvedAttack | None:
    """The attack of that name with the recipe's options; None for None."""
    return (
        ResolvedAttack(resolve_inner_attack(registry, inner).value, inner.ball, counted)
        if inner
        else None
    )


OPTIMISERS: dict[str, Callable[[list[nn.Parameter], Recipe], torch.optim.Optimizer]] = {
    "adam": lambda trainable, recipe: torch.optim.Adam(
        [{"params": trainable}], recipe.rate, weight_decay=recipe.weight_decay
    ),
    "sgd": lambda trainable, recipe: torch.optim.SGD(
        [{"params": trainable}], recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay
    ),
}


@contextmanager
def seeded_by_name(name: str, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators by a name inside; restore their state afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.random.manual_seed(seed_from_name(name))
        yield


def seed_from_name(name: str) -> int:
    """A seed in [0, 2^63) from a name."""
    return name_to_int64(name) % 2**63


def cpu_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A CPU copy of every parameter and buffer by name, each of its own shape [...]."""
    state: dict[str, Tensor] = model.state_dict()
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def load_checkpoint(state: TrainingState, checkpoint: Path) -> None:
    """Restore the state after the last finished epoch, if there is a checkpoint.

    Raises BenchError where it cannot be read, or was written in another arithmetic.
    """
    if not checkpoint.exists():
        return
    try:
        saved = torch.load(checkpoint, map_location=state.device, weights_only=True)
        arithmetic = saved["arithmetic"]
        if arithmetic == state.arithmetic:
            state.model.load_state_dict(saved["model"])
            state.optimiser.load_state_dict(saved["optimiser"])
            state.free_perturbation, state.best_weights = saved["carried"], saved["best"]
            state.history = [EpochReport(*entry) for entry in saved["history"]]
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise BenchError(
            f"{checkpoint} cannot be read ({error}); delete it to begin that training again."
        ) from error
    if arithmetic != state.arithmetic:
        raise BenchError(
            f"{checkpoint} was begun in {arithmetic}, and {state.arithmetic} was asked for; "
            "continue it as it was begun, or delete it to begin that training again."
        )


def save_checkpoint(state: TrainingState, checkpoint: Path) -> None:
    """Write the state after an epoch, so that a killed process loses at most one epoch."""
    saved = {
        "arithmetic": state.arithmetic,
        "model": state.model.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "carried": state.free_perturbation,
        "best": state.best_weights,
        "history": [tuple(entry) for entry in state.history],
    }
    write_atomically(checkpoint, lambda path: torch.save(saved, path))


def save_weights(state: TrainingState, files: WeightsFiles) -> bytes:
    """Write weights and record, delete the checkpoint; returns the content of the weights file."""
    record = {
        "defense": state.name,
        "machine": asdict(this_machine(state.device)),
        "mixed": state.mixed,
        "finished": time.time(),
        "collapsed": state.collapsed,
        "history": [entry._asdict() for entry in state.history],
    }
    content = write_weights(files, cpu_state_dict(state.model), record)
    files.checkpoint.unlink(missing_ok=True)
    return content


def write_weights(files: WeightsFiles, weights: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    """Write weights by name, each [...], then the record with their SHA-256; returns the content.

    The record comes last, so that weights without one were not finished.
    """
    content = safetensors.torch.save(weights)
    record = {"sha256": hashlib.sha256(content).hexdigest(), **record}
    write_atomically(files.weights, lambda path: path.write_bytes(content))
    write_atomically(files.record, lambda path: path.write_text(json.dumps(record, indent=1)))
    return content


def write_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file completely or not at all: to a temporary file, flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def format_epoch(report: EpochReport) -> str:
    """The figures of one epoch as one line of text."""
    robust = "" if report.robust is None else f", robust {report.robust:.0%}"
    monitored = "" if report.monitored is None else f", monitored {report.monitored:.0%}"
    epoch = f"epoch {report.epoch}/{report.epochs}, loss {report.loss:.4f}"
    return f"{epoch}, clean {report.clean:.0%}{robust}{monitored}"
