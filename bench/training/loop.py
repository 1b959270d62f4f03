"""The training loop for every recipe: standard, adversarial, Free, distillation, fitted buffers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.core.folders import cache_folder
from bench.data import image_rows
from bench.engine.problem import attack_once
from bench.plugin import Dataset, FreeTraining, Recipe, TrainingBatch
from bench.registry.registry import Registry
from bench.threats.random_numbers import example_key
from bench.training.recipes import recipe_digest
from bench.training.state import (
    EpochReport,
    ResolvedAttack,
    TrainingState,
    cpu_state_dict,
    initial_state,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    seed_from_name,
    seeded_by_name,
)
from bench.training.weights_cache import WeightsFiles

MONITORED_IMAGES = 256  # training images that `Recipe.monitor` attacks after each epoch
FIT_IMAGES = 2048  # at most this many training images are given to `Recipe.fit`

EpochListener = Callable[[EpochReport], None]


def train_weights(
    registry: Registry,
    name: str,
    dataset: Dataset,
    *,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: EpochListener | None = None,
    heartbeat: Callable[[], None] | None = None,
) -> str:
    """Train a defense by its recipe, continuing from a checkpoint if there is one.

    Args:
        registry: where the defense and its inner attack are found.
        name: the defense.
        dataset: the data set whose training half is used.
        teacher: the recipe's teacher, built; None where it names none.
        folder: holds `weights/` and `training/`; None: the cache folder.
        device: where to compute. Only the CPU gives the same weights again.
        mixed: forward passes in bfloat16 by torch's autocast.
        progress: called with the report of each epoch, also of those before the checkpoint.
        heartbeat: called after each batch, so that a lease can be extended.

    Returns:
        The SHA-256 of the weights file. A recipe that has been trained is not trained again.

    Raises:
        BenchError: where the recipe was trained in bfloat16 and `mixed` is False, or its checkpoint
            was written in another arithmetic.
    """
    files = WeightsFiles(folder or cache_folder(), recipe_digest(registry, name, dataset))
    content = files.content()
    if content is None:
        state = initial_state(registry, name, dataset, teacher, require_device(device), mixed)
        load_checkpoint(state, files.checkpoint)
        run_epochs(
            state, files.checkpoint, progress or (lambda _: None), heartbeat or (lambda: None)
        )
        if state.recipe.fit is not None:
            fit_buffers(state, state.recipe.fit)
        content = save_weights(state, files)
    elif files.mixed and not mixed:
        raise BenchError(
            f"{name} is trained already, in bfloat16; delete {files.record} to train it in "
            "float32, or ask for mixed precision to keep it."
        )
    return hashlib.sha256(content).hexdigest()


def require_device(device: torch.device | str) -> torch.device:
    """The device; raises UnavailableError where it is CUDA and this machine has none."""
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"{wanted} was asked for, and torch finds no CUDA device; use cpu.")
    return wanted


def run_epochs(
    state: TrainingState, checkpoint: Path, report: EpochListener, heartbeat: Callable[[], None]
) -> None:
    """Train the remaining epochs; after catastrophic overfitting restore the best weights."""
    for done in state.history:
        report(done)
    while not state.finished:
        epoch = len(state.history)
        state.history.append(train_epoch(state, epoch, heartbeat))
        if state.monitoring_attack and state.history[-1].monitored == best_monitored_accuracy(
            state
        ):
            state.best_weights = cpu_state_dict(state.model)
        save_checkpoint(state, checkpoint)
        report(state.history[-1])
    if state.collapsed:
        state.model.load_state_dict(state.best_weights)


def best_monitored_accuracy(state: TrainingState) -> float:
    """The best robust accuracy on the monitored images so far."""
    return max(entry.monitored for entry in state.history if entry.monitored is not None)


def train_epoch(state: TrainingState, epoch: int, heartbeat: Callable[[], None]) -> EpochReport:
    """One pass over the training images; raises PluginError where the loss is not finite."""
    recipe, count = state.recipe, len(state.labels)
    batches = epoch_batches(recipe, epoch, count)
    state.counts.clear()
    total = torch.zeros((), device=state.device)
    clean, robust = math.nan, None
    with seeded_by_name(f"{recipe.seed} epoch {epoch}", state.device):
        for number, rows in enumerate(batches):
            share = (epoch + (number + 0.5) / len(batches)) / recipe.epochs
            loss, batch = train_batch(state, rows.to(state.device), epoch, share)
            total += loss * len(rows)
            heartbeat()
            if number + 1 == len(batches):
                clean = accuracy(state.model, batch.x, batch.y)
                robust = accuracy(state.model, batch.adv, batch.y) if recipe.inner else None
        monitored = state.monitoring_attack and monitored_accuracy(state, state.monitoring_attack)
    mean = float(total) / count
    if not math.isfinite(mean):
        raise PluginError(
            f"the loss of {state.name} became {mean} in epoch {epoch + 1}; a lower rate than "
            f"{recipe.rate} may help."
        )
    gradients = state.counts["gradients"]
    return EpochReport(epoch + 1, recipe.epochs, mean, clean, robust, monitored, gradients)


def epoch_batches(recipe: Recipe, epoch: int, count: int) -> tuple[Tensor, ...]:
    """Example indices [n] of each batch, in an order keyed by (seed, epoch); near-equal sizes."""
    rows = torch.arange(count)
    key = example_key(recipe.seed, "order", rows, torch.full_like(rows, epoch))
    return key.argsort(stable=True).tensor_split(math.ceil(count / recipe.batch))


def train_batch(
    state: TrainingState, rows: Tensor, epoch: int, share: float
) -> tuple[Tensor, TrainingBatch]:
    """Mean loss and batch of a step on examples `rows` [n]; a step per replay in free training."""
    batch = training_batch(state, rows, epoch)
    set_learning_rate(state, share)
    free = state.recipe.inner
    if not isinstance(free, FreeTraining):
        return optimizer_step(state, batch), batch
    losses = []
    for _ in range(free.replays):
        batch = batch._replace(adv=apply_free_perturbation(state, free, batch.x))
        losses.append(optimizer_step(state, batch))
        update_free_perturbation(state, free, batch)
    return torch.stack(losses).mean(), batch._replace(adv=batch.adv.detach())


def training_batch(state: TrainingState, example: Tensor, epoch: int) -> TrainingBatch:
    """The training examples with indices `example` [n], augmented, and their adversarial images."""
    x, y = image_rows.to_float(state.images[example]), state.labels[example]
    if state.recipe.augment is not None:
        x = augment(state, state.recipe.augment, x)
    seed = seed_from_name(f"{state.recipe.seed} epoch {epoch}")
    adv, transferred = x, None
    if state.inner_attack:
        adv = attack_training_images(state, state.inner_attack, state.model, x, y, example, seed)
    if state.transfer_attack and state.teacher:
        transferred = attack_training_images(
            state, state.transfer_attack, state.teacher, x, y, example, seed
        )
    return TrainingBatch(state.model, x, y, adv, teacher=state.teacher, transferred=transferred)


def augment(state: TrainingState, augment: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Images x [n, C, H, W] augmented; raises PluginError for another shape or outside [0, 1]."""
    varied = augment(x)
    if varied.shape != x.shape or not bool(((varied >= 0) & (varied <= 1)).all()):
        raise PluginError(
            f"the augmentation of {state.name} gave {list(varied.shape)} within "
            f"[{float(varied.min()):.3g}, {float(varied.max()):.3g}]; {list(x.shape)} within "
            "[0, 1] was expected."
        )
    return varied.detach()


def attack_training_images(
    state: TrainingState,
    attack: ResolvedAttack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    example: Tensor,
    seed: int,
) -> Tensor:
    """Adversarial images of x [n, C, H, W] against a model in eval mode, detached.

    Raises PluginError where an image is outside the perturbation set or [0, 1].
    """
    attacked = Float32Logits(model) if state.mixed else model
    with eval_mode(model), autocast(state):
        points = attack_once(
            attack.attack, attacked, x, y, attack.ball, seed=seed, example=example,
            tally=state.counts if attack.counted else None,
        )  # fmt: skip
    points = points.float()
    inside = attack.ball.contains(points, x)
    if not bool(inside.all()):
        raise PluginError(
            f"{attack.attack.name} inside the training of {state.name} left the set or [0, 1] on "
            f"{int((~inside).sum())} of {len(x)} images; project what it returns."
        )
    return attack.ball.apply(points, x)


def apply_free_perturbation(state: TrainingState, free: FreeTraining, x: Tensor) -> Tensor:
    """Images x [n, C, H, W] with the perturbation that Free training carries over, projected."""
    # Projected outside the graph: a clamp inside has zero gradient where a pixel is at its bound.
    return free.ball.project(x + state.free_perturbation[: len(x)], x).detach().requires_grad_()


def update_free_perturbation(
    state: TrainingState, free: FreeTraining, batch: TrainingBatch
) -> None:
    """Move the carried perturbation along the images' gradient of the last backward pass.

    Raises PluginError where the loss does not depend on `batch.adv`.
    """
    gradient = batch.adv.grad
    if gradient is None:
        raise PluginError(
            f"the loss of {state.name} does not depend on batch.adv, from which Free training "
            "takes its perturbation."
        )
    adv = batch.adv.detach()
    moved = free.ball.ascend(adv, gradient.float(), free.rate, batch.x)
    state.free_perturbation[: len(adv)] = moved - batch.x


def optimizer_step(state: TrainingState, batch: TrainingBatch) -> Tensor:
    """One optimiser step; returns the mean of the batch's loss (scalar or [n]), detached.

    Raises PluginError where the loss has no gradient.
    """
    with autocast(state):
        loss = state.loss(batch)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise PluginError(
            f"the loss of {state.name} gave {type(loss).__name__} without a gradient; a scalar "
            "or [n] that depends on the model's weights was expected."
        )
    state.optimiser.zero_grad(set_to_none=True)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    state.optimiser.step()
    state.counts["gradients"] += len(batch.y)
    return loss.detach().mean()


def monitored_accuracy(state: TrainingState, attack: ResolvedAttack) -> float:
    """Robust accuracy on the first training images under the monitoring attack."""
    rows = torch.arange(min(MONITORED_IMAGES, len(state.labels)), device=state.device)
    x, y = image_rows.to_float(state.images[rows]), state.labels[rows]
    adv = attack_training_images(
        state, attack, state.model, x, y, rows, seed_from_name(f"{state.recipe.seed}")
    )
    return accuracy(state.model, adv, y)


def fit_buffers(state: TrainingState, fit: Callable[[TrainingBatch], None]) -> None:
    """Call `Recipe.fit`, which fills buffers of the model, with one large batch."""
    last = state.recipe.epochs
    rows = torch.cat(epoch_batches(state.recipe, last, len(state.labels)))[:FIT_IMAGES].to(
        state.device
    )
    with seeded_by_name(f"{state.recipe.seed} fit", state.device):
        batch = training_batch(state, rows, last)
        with eval_mode(state.model):
            fit(batch)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy on images x [n, C, H, W] with labels y [n], in eval mode."""
    with eval_mode(model), torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def set_learning_rate(state: TrainingState, share: float) -> None:
    """Set the learning rate by the recipe's schedule; `share` of the training is done, 0 to 1."""
    for group in state.optimiser.param_groups:
        group["lr"] = state.recipe.rate * SCHEDULES[state.recipe.schedule](share)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "cyclic": lambda share: 1 - abs(2 * share - 1),
    "steps": lambda share: 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01,
}
"""Share of the training done, 0 to 1 -> share of the peak learning rate."""


class Float32Logits(nn.Module):
    """A module whose logits are float32, as attacks require them, also under autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] float32 of images [n, C, H, W]."""
        logits: Tensor = self.module(images).float()
        return logits


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def autocast(state: TrainingState) -> torch.autocast:
    """The autocast context of this training: bfloat16 where `mixed`, disabled otherwise."""
    return torch.autocast(state.device.type, torch.bfloat16, enabled=state.mixed)
