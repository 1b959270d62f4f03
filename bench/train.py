"""One training loop: a defense brings its loss, its inner attack comes resolved by name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from bench import data
from bench.kit import example_key, word
from bench.plugin import Attack, Dataset, Lesson, Recipe
from bench.problem import craft
from bench.recipe import Stock, inner_attack, recipe_digest, recipe_of
from bench.records import BenchError, PluginError, UnfitError
from bench.registry import Registry
from bench.threat import PerturbationSet


class Progress(NamedTuple):
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


Tell = Callable[[Progress], None]


class Foe(NamedTuple):
    """The inner attack, resolved."""

    attack: Attack
    ball: PerturbationSet


@dataclass
class Course:
    """A training under way: what the loop holds from one epoch to the next."""

    name: str
    recipe: Recipe
    foe: Foe | None
    images: Tensor
    """The training half, uint8 [n, C, H, W], on the device."""
    labels: Tensor
    model: nn.Module
    optimiser: torch.optim.Optimizer
    device: torch.device
    mixed: bool
    history: list[Progress]
    """One entry for each epoch done."""


def train(
    registry: Registry,
    name: str,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: Tell | None = None,
    beat: Callable[[], None] | None = None,
) -> str:
    """Train a defense by its recipe, or go on where a killed training stopped.

    Args:
        registry: where the defense and its inner attack are found.
        name: the defense.
        dataset: whose training half is taught.
        folder: where `weights/` and `training/` lie; None: the cache folder.
        device: where to compute. Only the CPU promises the same weights again.
        mixed: forward passes in bfloat16 where torch deems it safe.
        progress: is told of each epoch, those of a training taken up again included.
        beat: called after each batch, so that whoever holds a lease can extend it.

    Returns:
        The SHA-256 of the weights file. A recipe that is done is not trained again.
    """
    stock = Stock(folder or data.cache(), recipe_digest(registry, name, dataset))
    content = stock.content()
    if content is None:
        course = begin(registry, name, dataset, fit(device), mixed)
        resume(course, stock.checkpoint)
        tell = progress or (lambda _: None)
        for done in course.history:
            tell(done)
        for epoch in range(len(course.history), course.recipe.epochs):
            course.history.append(one_epoch(course, epoch, beat or (lambda: None)))
            keep(course, stock.checkpoint)
            tell(course.history[-1])
        content = finish(course, stock)
    return hashlib.sha256(content).hexdigest()


def fit(device: torch.device | str) -> torch.device:
    """The device, if this machine has it."""
    asked = torch.device(device)
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise UnfitError(f"{asked} was asked for, and torch finds no CUDA device; use cpu.")
    return asked


def begin(
    registry: Registry, name: str, dataset: Dataset, device: torch.device, mixed: bool
) -> Course:
    """A course before its first epoch."""
    recipe = recipe_of(registry.find("defense", name).value)
    half = data.read(dataset).train
    if half is None:
        raise UnfitError(
            f"{name} is to be trained on {dataset.name}, of which only the test half is in "
            f"{data.folder()}; add the training half's files there."
        )
    with seeded(f"{recipe.seed} model", torch.device("cpu")):
        model = recipe.model(dataset.shape, len(dataset.classes)).to(device)
    taught = [p for p in model.parameters() if p.requires_grad]
    return Course(
        name,
        recipe,
        foe=Foe(inner_attack(registry, recipe.inner).value, recipe.inner.ball)
        if recipe.inner
        else None,
        images=torch.tensor(half.images, device=device),
        labels=torch.tensor(half.labels, device=device),
        model=model,
        optimiser=OPTIMISERS[recipe.optimiser](taught, recipe),
        device=device,
        mixed=mixed,
        history=[],
    )


def one_epoch(course: Course, epoch: int, beat: Callable[[], None]) -> Progress:
    """Every training image once, in the epoch's own order."""
    recipe, count = course.recipe, len(course.labels)
    batches = order(recipe, epoch, count)
    total = torch.zeros((), device=course.device)
    clean, robust = math.nan, None
    with seeded(f"{recipe.seed} epoch {epoch}", course.device):
        for number, rows in enumerate(batches):
            pace(course, (epoch + (number + 0.5) / len(batches)) / recipe.epochs)
            lesson = lesson_on(course, rows.to(course.device), epoch)
            total += learn(course, lesson) * len(rows)
            beat()
            if number + 1 == len(batches):
                clean = right(course.model, lesson.x, lesson.y)
                robust = course.foe and right(course.model, lesson.adv, lesson.y)
    mean = float(total) / count
    if not math.isfinite(mean):
        raise PluginError(
            f"the loss of {course.name} became {mean} in epoch {epoch + 1}; a lower rate than "
            f"{recipe.rate} may hold it."
        )
    return Progress(epoch + 1, recipe.epochs, mean, clean, robust)


def order(recipe: Recipe, epoch: int, count: int) -> tuple[Tensor, ...]:
    """The rows of each batch: keyed by (seed, epoch, row), sizes equal up to one."""
    rows = torch.arange(count)
    key = example_key(recipe.seed, "order", rows, torch.full_like(rows, epoch))
    return key.argsort(stable=True).tensor_split(math.ceil(count / recipe.batch))


def lesson_on(course: Course, example: Tensor, epoch: int) -> Lesson:
    """These rows of the training half, and what the inner attack makes of them."""
    x, y = data.pixels(course.images[example]), course.labels[example]
    if course.foe is None:
        return Lesson(course.model, x, y, adv=x)
    seed = number_of(f"{course.recipe.seed} epoch {epoch}")
    return Lesson(course.model, x, y, attacked(course, course.foe, x, y, example, seed))


def attacked(course: Course, foe: Foe, x: Tensor, y: Tensor, example: Tensor, seed: int) -> Tensor:
    """What the foe makes of x against the model in eval mode: detached, inside ball and box."""
    with evaluating(course.model), cast(course):
        adv = craft(foe.attack, course.model, x, y, foe.ball, seed=seed, example=example)
    adv = adv.detach().float()
    inside = foe.ball.contains(adv, x)
    if not bool(inside.all()):
        raise PluginError(
            f"{foe.attack.name} inside the training of {course.name} left ball or box on "
            f"{int((~inside).sum())} of {len(x)} images; project what it returns."
        )
    return adv


def learn(course: Course, lesson: Lesson) -> Tensor:
    """One step of the optimiser; the batch's mean loss, detached."""
    with cast(course):
        loss = course.recipe.loss(lesson)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise PluginError(
            f"the loss of {course.name} gave {type(loss).__name__} without a gradient; a scalar "
            "or [n] that depends on the model's weights was expected."
        )
    course.optimiser.zero_grad(set_to_none=True)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    course.optimiser.step()
    return loss.detach().mean()


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers, in eval mode."""
    with evaluating(model), torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def pace(course: Course, share: float) -> None:
    """Set the learning rate for this share of the whole training."""
    for group in course.optimiser.param_groups:
        group["lr"] = course.recipe.rate * SCHEDULES[course.recipe.schedule](share)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "cyclic": lambda share: 1 - abs(2 * share - 1),
}
"""Share of the training done, 0 to 1 -> share of the peak learning rate."""

OPTIMISERS: dict[str, Callable[[list[nn.Parameter], Recipe], torch.optim.Optimizer]] = {
    "adam": lambda taught, recipe: torch.optim.Adam(
        taught, recipe.rate, weight_decay=recipe.weight_decay
    ),
    "sgd": lambda taught, recipe: torch.optim.SGD(
        taught, recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay
    ),
}


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


@contextmanager
def seeded(name: str, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded by a name, and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.random.manual_seed(number_of(name))
        yield


def number_of(name: str) -> int:
    """A seed from a name."""
    return word(name) % 2**63


def cast(course: Course) -> torch.autocast:
    """Mixed precision, where it was asked for."""
    return torch.autocast(course.device.type, torch.bfloat16, enabled=course.mixed)


def resume(course: Course, checkpoint: Path) -> None:
    """Take up the state after the last whole epoch, if there is one."""
    if not checkpoint.exists():
        return
    try:
        state = torch.load(checkpoint, map_location=course.device, weights_only=True)
        course.model.load_state_dict(state["model"])
        course.optimiser.load_state_dict(state["optimiser"])
        course.history = [Progress(*entry) for entry in state["history"]]
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise BenchError(
            f"{checkpoint} cannot be read ({error}); delete it to begin that training again."
        ) from error


def keep(course: Course, checkpoint: Path) -> None:
    """Write the state after an epoch: a kill costs at most the epoch in hand."""
    state = {
        "model": course.model.state_dict(),
        "optimiser": course.optimiser.state_dict(),
        "history": [tuple(entry) for entry in course.history],
    }
    write(checkpoint, lambda path: torch.save(state, path))


def finish(course: Course, stock: Stock) -> bytes:
    """Write the weights, then their record, then drop the checkpoint; the weights file."""
    state = {
        key: value.detach().cpu().contiguous().clone()
        for key, value in course.model.state_dict().items()
    }
    content = safetensors.torch.save(state)
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "defense": course.name,
        "device": str(course.device),
        "mixed": course.mixed,
        "torch": torch.__version__,
        "finished": time.time(),
        "history": [entry._asdict() for entry in course.history],
    }
    write(stock.weights, lambda path: path.write_bytes(content))
    write(stock.record, lambda path: path.write_text(json.dumps(record, indent=1)))
    stock.checkpoint.unlink(missing_ok=True)
    return content


def write(path: Path, fill: Callable[[Path], object]) -> None:
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
