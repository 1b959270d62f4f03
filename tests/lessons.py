"""Small defenses for the tests of training and shelf, and a registry that holds only them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.course import Progress
from bench.kit import cross_entropy
from bench.plugin import Access, Dataset, Defense, Fraction, Inner, Lesson, Linf, Problem, Recipe
from bench.registry import Offer, Registry
from bench.train import train
from plugins.attacks import pgd
from plugins.datasets import digits

SHAPE = (1, 8, 8)
EPS = Fraction(51, 255)
DIGITS: Dataset = next(iter(digits.bench_datasets()))


def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One matrix."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def noisy(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Statistics, dropout and a frozen part: all that a resumed training may lose."""
    frozen = nn.BatchNorm2d(8).eval().requires_grad_(False)
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3), nn.BatchNorm2d(8), frozen, nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 36, classes),
    )  # fmt: skip


def on_adv(lesson: Lesson) -> Tensor:
    """Cross-entropy on what the inner attack made."""
    return cross_entropy(lesson.model(lesson.adv), lesson.y)


def on_clean(lesson: Lesson) -> Tensor:
    """Cross-entropy on clean images."""
    return cross_entropy(lesson.model(lesson.x), lesson.y)


@dataclass(frozen=True)
class OneStep:
    """x + eps times the sign of the gradient, projected only where asked."""

    name = "one-step"
    needs = Access.GRADIENTS
    steps: int = 1
    length: float = 1.0
    projects: bool = True

    def start(self, problem: Problem) -> Tensor:
        """The clean image."""
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        """Up the cross-entropy."""
        uphill = problem.ball.steepest(problem.gradient(adv, cross_entropy).gradient, adv)
        moved = adv + self.length * problem.ball.radius * uphill
        return problem.ball.project(moved, problem.x) if self.projects else moved


INNER = Inner("pgd", Linf(EPS), {"steps": 2, "rate": 0.75})


def recipe(**changes: Any) -> Recipe:
    """A linear model on clean images, two epochs."""
    return replace(Recipe(linear, on_clean, epochs=2, batch=128, rate=1e-2), **changes)


def defense(name: str, made_by: Recipe | None = None, **fields: Any) -> Defense:
    """A defense that is what its recipe trains."""
    if made_by is not None and "build" not in fields:
        fields["build"] = lambda shelf: shelf.trained(made_by.model(shelf.shape, shelf.classes))
    return Defense(name=name, recipe=made_by, **fields)


def registry(*defenses: Defense, sources: Mapping[str, str] | None = None) -> Registry:
    """Only these defenses, with PGD and `one-step` as attacks."""
    known = sources or {}
    full = Registry()
    for attack in (next(iter(pgd.bench_attacks())), OneStep()):
        full.attacks[attack.name] = Offer(attack, "built-in", "tests.lessons", "attack source")
    for one in defenses:
        source = known.get(one.name, "defense source")
        full.defenses[one.name] = Offer(one, "built-in", "tests.lessons", source)
    return full


@dataclass
class Witness:
    """A loss that keeps the lessons it saw."""

    loss: Callable[[Lesson], Tensor] = on_adv
    lessons: list[Lesson] = field(default_factory=list)

    def __call__(self, lesson: Lesson) -> Tensor:
        """What `loss` says."""
        self.lessons.append(lesson)
        return self.loss(lesson)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The child processes of the kill tests compute with one thread; so does who imports this."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def taught(folder: Path, made_by: Recipe, **options: Any) -> str:
    """The weights digest of a defense, `pupil`, trained in `folder`."""
    return train(registry(defense("pupil", made_by)), "pupil", DIGITS, folder=folder, **options)


RESUMED = recipe(model=noisy, loss=on_adv, inner=INNER, epochs=3)


def killed_after(epoch: int) -> Callable[[Progress], None]:
    """A listener that kills its own process, as power loss would."""

    def listen(progress: Progress) -> None:
        if progress.epoch == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    return listen


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, last = Path(sys.argv[1]), int(sys.argv[2])
    train(
        registry(defense("resumed", RESUMED)),
        "resumed",
        DIGITS,
        folder=place,
        progress=killed_after(last),
    )
