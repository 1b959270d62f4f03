"""Foolbox (arXiv:1707.04131): the attacks that have no counterpart among the project's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.plugin import (
    Access,
    ExternalAttack,
    ExternalProblem,
    MissingLibrary,
    hookimpl,
    per_image,
)
from plugins.external._library_attack import brought, offered, version


@dataclass(frozen=True)
class Foolbox:
    """One attack class of Foolbox, its options set.

    It is called through `run`, without the clipping and the second success test around it; a
    minimising one gets no radius, which its wrapper would take for an early stop.
    """

    name: str
    kind: str
    """The class in `foolbox.attacks`."""
    norms: tuple[str, ...]
    cite: str
    summary: str
    needs: Access = Access.GRADIENTS
    minimises: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    starts: int = 0
    """Noise images tried for a start, where the attack walks back from a wrong answer."""
    rows: int = 64
    version: str = field(default_factory=lambda: version("foolbox"))

    @property
    def goals(self) -> tuple[str, ...]:
        """A distance board is for those who shrink."""
        return ("untargeted", "nearest") if self.minimises else ("untargeted",)

    def prepare(self) -> None:
        """Import the library."""
        import_module("foolbox")

    def run(self, problem: ExternalProblem) -> Tensor:
        """Its images; a row without a start stays as it was."""
        if not self.starts:
            return brought(problem, self.play(problem, problem.x, problem.y), self.minimises)
        start, found = starting_points(problem, self.starts)
        rows = found.nonzero()[:, 0]
        images = problem.x.clone()
        if len(rows):
            with problem.model.about(rows):
                x, y = problem.x[rows], problem.y[rows]
                images[rows] = self.play(problem, x, y, starting_points=start[rows])
        return brought(problem, images, self.minimises)

    def play(self, problem: ExternalProblem, x: Tensor, y: Tensor, **given: Any) -> Tensor:
        """The library's own run on these rows."""
        foolbox = import_module("foolbox")
        # Told the device, or it moves the model to the first GPU it sees.
        model = foolbox.PyTorchModel(problem.model, bounds=(0, 1), device=x.device)
        attack = getattr(foolbox.attacks, self.kind)(**self.options)
        radius = {"early_stop": None} if self.minimises else {"epsilon": problem.ball.radius}
        images: Tensor = attack.run(model, x, foolbox.Misclassification(y), **radius, **given)
        return images


def starting_points(problem: ExternalProblem, tries: int) -> tuple[Tensor, Tensor]:
    """[n, C, H, W] wrong answers to walk back from, and [n] bool: where there is one.

    Foolbox looks for starts itself, and raises for the whole batch when one row has none.
    """
    start, found = problem.x.clone(), torch.zeros_like(problem.y, dtype=torch.bool)
    for draw in range(tries):
        rows = (~found).nonzero()[:, 0]
        if not len(rows):
            break
        question = noise(problem, draw)[rows]
        with problem.model.about(rows):
            wrong = problem.model(question).argmax(1) != problem.y[rows]
        start[rows[wrong]] = question[wrong]
        found[rows[wrong]] = True
    return start, found


def noise(problem: ExternalProblem, draw: int) -> Tensor:
    """[n, C, H, W]: grain of any contrast on any grey, so that starts differ in class."""
    grain = problem.uniform(f"grain {draw}", tuple(problem.x.shape[1:])) - 0.5
    grey, contrast = problem.uniform(f"look {draw}", (2,)).unbind(1)
    return (per_image(grey) + 4 * per_image(contrast) * grain).clamp(0, 1)


@hookimpl
def bench_attacks() -> Iterator[ExternalAttack | MissingLibrary]:
    """Where gradients are given, where labels alone are, and noise."""
    yield from offered("foolbox", "foolbox", [*gradients(), *labels()])


def gradients() -> Iterator[Foolbox]:
    """Attacks that differentiate."""
    yield Foolbox(
        "foolbox-ead", "EADAttack", ("L1",), "arXiv:1709.04114",
        "Elastic net: many pixels at rest, the others changed as little as will do.",
        options={"binary_search_steps": 5, "steps": 100, "decision_rule": "L1"},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-ddn", "DDNAttack", ("L2",), "arXiv:1811.09600",
        "Direction apart from length: the length shrinks while it wins.",
        options={"steps": 100},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-fmn-linf", "LInfFMNAttack", ("Linf",), "arXiv:2102.12827",
        "A radius of its own, shrunk and grown towards the nearest wrong answer.",
        options={"steps": 100},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-virtual-adversarial", "VirtualAdversarialAttack", ("L2",), "arXiv:1507.00677",
        "Away from the clean answer by its divergence, without the label.",
        minimises=False, options={"steps": 10, "xi": 1e-2},
    )  # fmt: skip
    yield Foolbox(
        "foolbox-sparse-l1", "SparseL1DescentAttack", ("L1",), "arXiv:1904.13000",
        "Steps along the steepest hundredth of the pixels.",
        minimises=False, options={"steps": 40, "quantile": 0.9, "random_start": True},
    )  # fmt: skip


def labels() -> Iterator[Foolbox]:
    """Attacks that see labels alone."""
    for norm in ("L2", "Linf"):
        # One row at a time: the estimate is divided by its length over the whole batch.
        yield Foolbox(
            f"foolbox-hop-skip-jump-{norm.lower()}", "HopSkipJumpAttack", (norm,),
            "arXiv:1904.02144", "The slope of the border, estimated from labels around it.",
            Access.LABELS, options={"steps": 10, "constraint": norm.lower()}, starts=100, rows=1,
        )  # fmt: skip
    yield Foolbox(
        "foolbox-salt-and-pepper", "SaltAndPepperNoiseAttack", ("L2",), "arXiv:1707.04131",
        "More and more black and white pixels.",
        Access.LABELS, options={"steps": 500, "channel_axis": 1},
    )  # fmt: skip
