"""What the harness costs a library, and what frozen parameters give back: CPU seconds in pairs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess, freeze
from bench.engine.runner import run_attack
from bench.plugin import Attack
from bench.threats.access import Access, Budget
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal
from plugins.external.foolbox import Foolbox
from tests.fixtures.known_models import digits, small_cnn

PGD = Foolbox(
    "foolbox-pgd", "LinfPGD", ("Linf",), "", "", Access.GRADIENTS, minimises=False,
    options={"steps": 40},
)  # fmt: skip
BALL = Linf(Fraction(2, 255))
"""So narrow that no closed set is won whole: nothing is saved by ending early."""
SET = 64


class Pair(NamedTuple):
    """CPU seconds of the same work, done both ways, one after the other."""

    one: float
    other: float


def ratio(pairs: list[Pair]) -> float:
    """The median of other / one."""
    return statistics.median(pair.other / pair.one for pair in pairs)


def library_pairs(
    model: nn.Module, n: int = 512, repeats: int = 5, *, frozen: bool = True
) -> list[Pair]:
    """Foolbox's LinfPGD, 40 steps on n digits: bare, then in the harness, its looks included.

    With `frozen` both ask a frozen model, so that only the harness differs; without it the bare
    library asks a model as it comes, and fills the gradients of its parameters.
    """
    alone = copy.deepcopy(model).eval().requires_grad_(not frozen)
    x, y = known(model, n)
    game = cell(model, x, y)

    def confirm(items: Tensor, images: Tensor) -> Tensor:
        return BALL.contains(images.double(), x[items].double())

    def inside() -> None:
        parts = list(run_attack(game, confirm))
        assert sum(int(part.gradients.sum()) for part in parts) >= 30 * n

    return timed(lambda: bare(alone, x, y), inside, repeats)


def frozen_pairs(model: nn.Module, n: int = 512, repeats: int = 5) -> list[Pair]:
    """A plain backward pass as libraries do it: parameters that ask for gradients, then frozen."""
    loose, frozen = copy.deepcopy(model).eval().requires_grad_(True), freeze(copy.deepcopy(model))
    x, y = known(model, n)

    def passes(of: nn.Module) -> None:
        for images, labels in zip(torch.split(x, SET), torch.split(y, SET), strict=True):
            for _ in range(40):
                leaf = images.clone().requires_grad_()
                loss = nn.functional.cross_entropy(of(leaf), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                of.zero_grad()

    return timed(lambda: passes(loose), lambda: passes(frozen), repeats)


def bare(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The library alone, in batches of the same size."""
    foolbox = import_module("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(**PGD.options)
    blocks = zip(torch.split(x, SET), torch.split(y, SET), strict=True)
    return torch.cat([attack.run(wrapped, a, b, epsilon=BALL.radius) for a, b in blocks])


def known(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """The first n digits, and what the model calls them: it is right on all."""
    x, _ = digits(n)
    with torch.no_grad():
        return x, model.eval()(x).argmax(1)


def large_cnn() -> nn.Module:
    """The digits at 32 x 32 before half a million weights: a step takes twenty times longer."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Upsample(scale_factor=4), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


def cell(model: nn.Module, x: Tensor, y: Tensor) -> CellSpec:
    """The cell of these rows."""
    door = ModelAccess(model)
    by: Attack = cast(Any, PGD)
    return CellSpec(
        attack=by, model_access=door, defense=door, ball=BALL, goal=Goal(), budget=Budget(), x=x, y=y,
        aim=torch.full_like(y, -1), clean=door.logits(x), lost=torch.zeros_like(y) > 0, seed=0,
    )  # fmt: skip


def timed(one: Callable[[], object], other: Callable[[], object], repeats: int) -> list[Pair]:
    """Both once for nothing, then in turn."""
    one(), other()
    return [Pair(_seconds(one), _seconds(other)) for _ in range(repeats)]


def _seconds(work: Callable[[], object]) -> float:
    since = time.process_time()
    work()
    return time.process_time() - since


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size, model, n in (("small", small_cnn(), 512), ("large", large_cnn(), 64)):
        for name, pairs in (
            ("in the harness / bare", library_pairs(model, n)),
            ("in the harness / bare on a model as it comes", library_pairs(model, n, frozen=False)),
            ("frozen / plain backward", frozen_pairs(model, n)),
        ):
            seconds = ", ".join(f"{pair.one:.2f} {pair.other:.2f}" for pair in pairs)
            print(f"{size} model, {name}: {ratio(pairs):.3f} ({seconds})")
