"""One training loop: a defense brings its loss, its inner attack comes resolved by name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.data import datasets
from bench.engine.problem import attack_once
from bench.plugin import Dataset, FreeTraining, Recipe, TrainingBatch
from bench.registry.registry import Registry
from bench.threats.random_numbers import example_key
from bench.training.recipes import recipe_digest
from bench.training.state import (
    EpochReport,
    ResolvedAttack,
    TrainingState,
    initial_state,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    seed_from_name,
    seeded,
    weights_of,
)
from bench.training.weights_cache import WeightsFiles

MONITORED_IMAGES = 256  # training images that the watch attacks after each epoch
FIT_IMAGES = 2048  # training images that `Recipe.fit` is shown at most

EpochListener = Callable[[EpochReport], None]


def train(
    registry: Registry,
    name: str,
    dataset: Dataset,
    *,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: EpochListener | None = None,
    beat: Callable[[], None] | None = None,
) -> str:
    """Train a defense by its recipe, or go on where a killed training stopped.

    Args:
        registry: where the defense and its inner attack are found.
        name: the defense.
        dataset: whose training half is taught.
        teacher: the defense that the recipe names as its teacher, built.
        folder: where `weights/` and `training/` lie; None: the cache folder.
        device: where to compute. Only the CPU promises the same weights again.
        mixed: forward passes in bfloat16 where torch deems it safe.
        progress: is told of each epoch, those of a training taken up again included.
        beat: called after each batch, so that whoever holds a lease can extend it.

    Returns:
        The SHA-256 of the weights file. A recipe that is done is not trained again; BenchError
        where it was done in bfloat16 and is not asked for in `mixed`, or was begun in another
        arithmetic.
    """
    stock = WeightsFiles(folder or datasets.cache_folder(), recipe_digest(registry, name, dataset))
    content = stock.content()
    if content is None:
        course = initial_state(registry, name, dataset, teacher, require_device(device), mixed)
        load_checkpoint(course, stock.checkpoint)
        run_epochs(course, stock.checkpoint, progress or (lambda _: None), beat or (lambda: None))
        if course.recipe.fit is not None:
            fit_buffers(course, course.recipe.fit)
        content = save_weights(course, stock)
    elif stock.mixed and not mixed:
        raise BenchError(
            f"{name} is trained already, in bfloat16; delete {stock.record} to train it in "
            "float32, or ask for mixed precision to keep it."
        )
    return hashlib.sha256(content).hexdigest()


def require_device(device: torch.device | str) -> torch.device:
    """The device, if this machine has it."""
    asked = torch.device(device)
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"{asked} was asked for, and torch finds no CUDA device; use cpu.")
    return asked


def run_epochs(
    course: TrainingState, checkpoint: Path, tell: EpochListener, beat: Callable[[], None]
) -> None:
    """Every epoch that is left; after a collapse the weights are those of the best one."""
    for done in course.history:
        tell(done)
    while not course.over:
        epoch = len(course.history)
        course.history.append(train_epoch(course, epoch, beat))
        if course.guard and course.history[-1].watched == best_monitored(course):
            course.best = weights_of(course.model)
        save_checkpoint(course, checkpoint)
        tell(course.history[-1])
    if course.collapsed:
        course.model.load_state_dict(course.best)


def best_monitored(course: TrainingState) -> float:
    """The best robust share of the watched images so far."""
    return max(entry.watched for entry in course.history if entry.watched is not None)


def train_epoch(course: TrainingState, epoch: int, beat: Callable[[], None]) -> EpochReport:
    """Every training image once, in the epoch's own order."""
    recipe, count = course.recipe, len(course.labels)
    batches = epoch_batches(recipe, epoch, count)
    course.tally.clear()
    total = torch.zeros((), device=course.device)
    clean, robust = math.nan, None
    with seeded(f"{recipe.seed} epoch {epoch}", course.device):
        for number, rows in enumerate(batches):
            share = (epoch + (number + 0.5) / len(batches)) / recipe.epochs
            loss, lesson = train_batch(course, rows.to(course.device), epoch, share)
            total += loss * len(rows)
            beat()
            if number + 1 == len(batches):
                clean = correct_share(course.model, lesson.x, lesson.y)
                robust = correct_share(course.model, lesson.adv, lesson.y) if recipe.inner else None
        watched = course.guard and monitored_accuracy(course, course.guard)
    mean = float(total) / count
    if not math.isfinite(mean):
        raise PluginError(
            f"the loss of {course.name} became {mean} in epoch {epoch + 1}; a lower rate than "
            f"{recipe.rate} may hold it."
        )
    spent = course.tally["gradients"]
    return EpochReport(epoch + 1, recipe.epochs, mean, clean, robust, watched, spent)


def epoch_batches(recipe: Recipe, epoch: int, count: int) -> tuple[Tensor, ...]:
    """The rows of each batch: keyed by (seed, epoch, row), sizes equal up to one."""
    rows = torch.arange(count)
    key = example_key(recipe.seed, "order", rows, torch.full_like(rows, epoch))
    return key.argsort(stable=True).tensor_split(math.ceil(count / recipe.batch))


def train_batch(
    course: TrainingState, rows: Tensor, epoch: int, share: float
) -> tuple[Tensor, TrainingBatch]:
    """These rows learned, once or as often as Free training replays them: (mean loss, lesson)."""
    lesson = training_batch(course, rows, epoch)
    set_learning_rate(course, share)
    free = course.recipe.inner
    if not isinstance(free, FreeTraining):
        return optimizer_step(course, lesson), lesson
    losses = []
    for _ in range(free.replays):
        lesson = lesson._replace(adv=apply_free_perturbation(course, free, lesson.x))
        losses.append(optimizer_step(course, lesson))
        update_free_perturbation(course, free, lesson)
    return torch.stack(losses).mean(), lesson._replace(adv=lesson.adv.detach())


def training_batch(course: TrainingState, example: Tensor, epoch: int) -> TrainingBatch:
    """These rows of the training half, and what the attacks make of them."""
    x, y = datasets.to_float(course.images[example]), course.labels[example]
    if course.recipe.augment is not None:
        x = augment(course, course.recipe.augment, x)
    seed = seed_from_name(f"{course.recipe.seed} epoch {epoch}")
    adv, moved = x, None
    if course.foe:
        adv = attack_training_images(course, course.foe, course.model, x, y, example, seed)
    if course.rival and course.teacher:
        moved = attack_training_images(course, course.rival, course.teacher, x, y, example, seed)
    return TrainingBatch(course.model, x, y, adv, teacher=course.teacher, transferred=moved)


def augment(course: TrainingState, augment: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """x as the recipe varies it; PluginError where it leaves shape or box."""
    varied = augment(x)
    if varied.shape != x.shape or not bool(((varied >= 0) & (varied <= 1)).all()):
        raise PluginError(
            f"the augmentation of {course.name} gave {list(varied.shape)} within "
            f"[{float(varied.min()):.3g}, {float(varied.max()):.3g}]; {list(x.shape)} within "
            "[0, 1] was expected."
        )
    return varied.detach()


def attack_training_images(
    course: TrainingState,
    foe: ResolvedAttack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    example: Tensor,
    seed: int,
) -> Tensor:
    """What a foe makes of x against a model in eval mode: detached, inside ball and box."""
    with evaluating(model), autocast(course):
        adv = attack_once(
            foe.attack, model, x, y, foe.ball, seed=seed, example=example,
            tally=course.tally if foe.counted else None,
        )  # fmt: skip
    adv = adv.detach().float()
    inside = foe.ball.contains(adv, x)
    if not bool(inside.all()):
        raise PluginError(
            f"{foe.attack.name} inside the training of {course.name} left ball or box on "
            f"{int((~inside).sum())} of {len(x)} images; project what it returns."
        )
    return adv


def apply_free_perturbation(course: TrainingState, free: FreeTraining, x: Tensor) -> Tensor:
    """x with the carried perturbation, projected before the graph begins: a clamp inside it
    would have no slope where a pixel is at its bound."""
    return free.ball.project(x + course.carried[: len(x)], x).detach().requires_grad_()


def update_free_perturbation(
    course: TrainingState, free: FreeTraining, lesson: TrainingBatch
) -> None:
    """Carry the perturbation on along the gradient that the weights were learned with."""
    slope = lesson.adv.grad
    if slope is None:
        raise PluginError(
            f"the loss of {course.name} does not depend on lesson.adv, from which Free training "
            "takes its perturbation."
        )
    adv = lesson.adv.detach()
    moved = free.ball.ascend(adv, slope.float(), free.rate, lesson.x)
    course.carried[: len(adv)] = moved - lesson.x


def optimizer_step(course: TrainingState, lesson: TrainingBatch) -> Tensor:
    """One step of the optimiser; the batch's mean loss, detached."""
    with autocast(course):
        loss = course.loss(lesson)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise PluginError(
            f"the loss of {course.name} gave {type(loss).__name__} without a gradient; a scalar "
            "or [n] that depends on the model's weights was expected."
        )
    course.optimiser.zero_grad(set_to_none=True)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    course.optimiser.step()
    course.tally["gradients"] += len(lesson.y)
    return loss.detach().mean()


def monitored_accuracy(course: TrainingState, guard: ResolvedAttack) -> float:
    """The share of the watched images that the guard leaves right."""
    rows = torch.arange(min(MONITORED_IMAGES, len(course.labels)), device=course.device)
    x, y = datasets.to_float(course.images[rows]), course.labels[rows]
    adv = attack_training_images(
        course, guard, course.model, x, y, rows, seed_from_name(f"{course.recipe.seed}")
    )
    return correct_share(course.model, adv, y)


def fit_buffers(course: TrainingState, fitted: Callable[[TrainingBatch], None]) -> None:
    """Let `Recipe.fit` fill the model's buffers from one large lesson."""
    last = course.recipe.epochs
    rows = torch.cat(epoch_batches(course.recipe, last, len(course.labels)))[:FIT_IMAGES].to(
        course.device
    )
    with seeded(f"{course.recipe.seed} fit", course.device):
        lesson = training_batch(course, rows, last)
        with evaluating(course.model):
            fitted(lesson)


def correct_share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers, in eval mode."""
    with evaluating(model), torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def set_learning_rate(course: TrainingState, share: float) -> None:
    """Set the learning rate for this share of the whole training."""
    for group in course.optimiser.param_groups:
        group["lr"] = course.recipe.rate * SCHEDULES[course.recipe.schedule](share)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "cyclic": lambda share: 1 - abs(2 * share - 1),
    "steps": lambda share: 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01,
}
"""Share of the training done, 0 to 1 -> share of the peak learning rate."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def autocast(course: TrainingState) -> torch.autocast:
    """Mixed precision, where it was asked for."""
    return torch.autocast(course.device.type, torch.bfloat16, enabled=course.mixed)
