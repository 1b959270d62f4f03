"""Attacks of Foolbox (arXiv:1707.04131) that have no counterpart among the built-in attacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    ExternalAttack,
    ExternalProblem,
    MissingLibrary,
    hookimpl,
    per_row,
)
from plugins.external._library_attack import LibraryAttack, registered, version


@dataclass(frozen=True)
class Foolbox(LibraryAttack):
    """One attack class of Foolbox with its options.

    Its `run` is called directly, without Foolbox's clipping and second success test. An attack that
    minimises receives no radius, which Foolbox's wrapper would take for a reason to stop early.
    """

    starts: int = 0
    """Noise images tried as starting points, where the attack needs an adversarial one."""
    rows: int = 64
    version: str = field(default_factory=lambda: version("foolbox"))

    modules: ClassVar[tuple[str, ...]] = ("foolbox.attacks",)

    def generate(self, problem: ExternalProblem) -> Tensor:
        """The images [n, C, H, W] of the attack; the clean image where no starting point exists."""
        if not self.starts:
            return self.attack_rows(problem, problem.x, problem.y)
        start, found = starting_points(problem, self.starts)
        rows = found.nonzero()[:, 0]
        images = problem.x.clone()
        if len(rows):
            with problem.model.for_rows(rows):
                x, y = problem.x[rows], problem.y[rows]
                images[rows] = self.attack_rows(problem, x, y, starting_points=start[rows])
        return images

    def attack_rows(
        self, problem: ExternalProblem, x: Tensor, y: Tensor, **arguments: Any
    ) -> Tensor:
        """Run Foolbox on images x [b, C, H, W] with labels y [b]; returns [b, C, H, W]."""
        foolbox = import_module("foolbox")
        # Without a device Foolbox moves the model to the first GPU.
        model = foolbox.PyTorchModel(problem.model, bounds=(0, 1), device=x.device)
        attack = self.implementation(**self.options)
        radius = {"early_stop": None} if self.minimises else {"epsilon": problem.ball.radius}
        images: Tensor = attack.run(model, x, foolbox.Misclassification(y), **radius, **arguments)
        return images


def starting_points(problem: ExternalProblem, tries: int) -> tuple[Tensor, Tensor]:
    """Misclassified noise images [n, C, H, W], and [n] bool: for which rows one was found.

    Foolbox searches starting points itself, but raises for the whole batch where one row has none.
    """
    start, found = problem.x.clone(), torch.zeros_like(problem.y, dtype=torch.bool)
    for draw in range(tries):
        rows = (~found).nonzero()[:, 0]
        if not len(rows):
            break
        query = noise(problem, draw)[rows]
        with problem.model.for_rows(rows):
            wrong = problem.model(query).argmax(1) != problem.y[rows]
        start[rows[wrong]] = query[wrong]
        found[rows[wrong]] = True
    return start, found


def noise(problem: ExternalProblem, draw: int) -> Tensor:
    """Uniform noise [n, C, H, W] of random contrast around a random grey level.

    Noise of one kind would mostly fall into one class.
    """
    grain = problem.uniform(f"grain {draw}", tuple(problem.x.shape[1:])) - 0.5
    grey, contrast = problem.uniform(f"look {draw}", (2,)).unbind(1)
    return (per_row(grey) + 4 * per_row(contrast) * grain).clamp(0, 1)


@hookimpl
def bench_attacks() -> Iterator[ExternalAttack | MissingLibrary]:
    """Register the attacks that need gradients, then those that need labels."""
    yield from registered("foolbox", "foolbox", [*gradient_attacks(), *label_attacks()])


def gradient_attacks() -> Iterator[Foolbox]:
    """Attacks that need gradients."""
    yield Foolbox(
        "foolbox-ead", "EADAttack", ("L1",), "arXiv:1709.04114",
        "Elastic-net attack: Carlini and Wagner's loss with an L1 penalty, so few pixels change.",
        options={"binary_search_steps": 5, "steps": 100, "decision_rule": "L1"},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-ddn", "DDNAttack", ("L2",), "arXiv:1811.09600",
        "Decoupled direction and norm: shrinks the norm while the image is adversarial.",
        options={"steps": 100},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-fmn-linf", "LInfFMNAttack", ("Linf",), "arXiv:2102.12827",
        "Fast minimum-norm attack: adapts the radius of its ball to the nearest wrong answer.",
        options={"steps": 100},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-virtual-adversarial", "VirtualAdversarialAttack", ("L2",), "arXiv:1507.00677",
        "Ascends the KL divergence from the clean prediction; uses no label.",
        minimises=False, options={"steps": 10, "xi": 1e-2},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-sparse-l1", "SparseL1DescentAttack", ("L1",), "arXiv:1904.13000",
        "Sparse L1 descent: each step changes the tenth of the pixels with the largest gradients.",
        minimises=False, options={"steps": 40, "quantile": 0.9, "random_start": True},
    )  # fmt: skip


def label_attacks() -> Iterator[Foolbox]:
    """Attacks that need labels only."""
    for norm in ("L2", "Linf"):
        # One row at a time: HopSkipJump divides its estimate by its norm over the whole batch.
        yield Foolbox(
            f"foolbox-hop-skip-jump-{norm.lower()}", "HopSkipJumpAttack", (norm,),
            "arXiv:1904.02144",
            "HopSkipJump: estimates the normal of the decision boundary from labels around it.",
            Access.LABELS, options={"steps": 10, "constraint": norm.lower()}, starts=100, rows=1,
        )  # fmt: skip
    yield Foolbox(
        "foolbox-salt-and-pepper", "SaltAndPepperNoiseAttack", ("L2",), "arXiv:1707.04131",
        "Turns more and more pixels black or white.",
        Access.LABELS, options={"steps": 500, "channel_axis": 1},
    )  # fmt: skip
