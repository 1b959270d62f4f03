"""CPU seconds of a library attack in the harness and alone, and of frozen parameters."""

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
"""So small that in no batch all examples break: no run ends early."""
BATCH = 64


class Pair(NamedTuple):
    """CPU seconds of the same work in two variants, one after the other."""

    one: float
    other: float


def ratio(pairs: list[Pair]) -> float:
    """The median ratio of the second variant to the first."""
    return statistics.median(pair.other / pair.one for pair in pairs)


def library_pairs(
    model: nn.Module, n: int = 512, repeats: int = 5, *, frozen: bool = True
) -> list[Pair]:
    """Foolbox LinfPGD with 40 steps on n digits: alone, then in the harness with final checks.

    With `frozen` both attack a frozen model, so that only the harness differs. Without it the
    library alone attacks a model whose parameters require gradients, and computes those too.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(not frozen)
    x, y = labelled_digits(model, n)
    spec = cell(model, x, y)

    def confirm(items: Tensor, images: Tensor) -> Tensor:
        return BALL.contains(images.double(), x[items].double())

    def in_harness() -> None:
        parts = list(run_attack(spec, confirm))
        assert sum(int(part.gradients.sum()) for part in parts) >= 30 * n

    return timed(lambda: library_alone(plain, x, y), in_harness, repeats)


def frozen_pairs(model: nn.Module, n: int = 512, repeats: int = 5) -> list[Pair]:
    """Backward passes with parameters that require gradients, then with frozen parameters."""
    unfrozen, frozen = (
        copy.deepcopy(model).eval().requires_grad_(True),
        freeze(copy.deepcopy(model)),
    )
    x, y = labelled_digits(model, n)

    def passes(of: nn.Module) -> None:
        for images, labels in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True):
            for _ in range(40):
                leaf = images.clone().requires_grad_()
                loss = nn.functional.cross_entropy(of(leaf), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                of.zero_grad()

    return timed(lambda: passes(unfrozen), lambda: passes(frozen), repeats)


def library_alone(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Adversarial images [n, C, H, W] of Foolbox alone, in batches of the same size."""
    foolbox = import_module("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(**PGD.options)
    blocks = zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
    return torch.cat([attack.run(wrapped, a, b, epsilon=BALL.radius) for a, b in blocks])


def labelled_digits(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """The first n digits [n, 1, 8, 8] with the labels [n] that the model predicts."""
    x, _ = digits(n)
    with torch.no_grad():
        return x, model.eval()(x).argmax(1)


def large_cnn() -> nn.Module:
    """A network of half a million weights on 32 x 32 digits; a step takes 20 times longer."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Upsample(scale_factor=4), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


def cell(model: nn.Module, x: Tensor, y: Tensor) -> CellSpec:
    """The cell of these examples."""
    access = ModelAccess(model)
    attack: Attack = cast(Any, PGD)
    return CellSpec(
        attack=attack, model_access=access, defense=access, ball=BALL, goal=Goal(),
        budget=Budget(), x=x, y=y, target=torch.full_like(y, -1), clean_logits=access.logits(x),
        reached_on_clean=torch.zeros_like(y) > 0, seed=0,
    )  # fmt: skip


def timed(one: Callable[[], object], other: Callable[[], object], repeats: int) -> list[Pair]:
    """Run both once untimed, then time them alternately."""
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
            ("in the harness / alone", library_pairs(model, n)),
            ("in the harness / alone on an unfrozen model", library_pairs(model, n, frozen=False)),
            ("frozen / plain backward", frozen_pairs(model, n)),
        ):
            seconds = ", ".join(f"{pair.one:.2f} {pair.other:.2f}" for pair in pairs)
            print(f"{size} model, {name}: {ratio(pairs):.3f} ({seconds})")
