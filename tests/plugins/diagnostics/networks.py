"""Small networks on digits, trained within a second, and how diagnostics examine them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.data import datasets
from bench.data.image_rows import to_float
from bench.engine.answer_work import work_of_answer
from bench.plugin import Defense, Diagnostic, Evidence, Finding, Randomness, Subject
from bench.registry.registry import Registry

TRAINED = 512
EXAMPLES = 256


class Data(NamedTuple):
    """Test and training images [n, C, H, W] with labels [n]."""

    x: Tensor
    y: Tensor
    train_x: Tensor
    train_y: Tensor


@cache
def registry() -> Registry:
    """The built-in plugins."""
    return Registry.without_submissions()


@cache
def diagnostics() -> Mapping[str, Diagnostic]:
    """The built-in diagnostics by name."""
    return {name: found.value for name, found in registry().diagnostics.items()}


@cache
def digits() -> Data:
    """Digits: 256 test images, and all training images."""
    dataset = registry().datasets["digits"].value
    images = datasets.load_dataset(dataset)
    assert images.train is not None
    test = datasets.first_examples(dataset, EXAMPLES)
    return Data(
        test.tensor(),
        torch.tensor(test.labels),
        to_float(torch.tensor(images.train.images)),
        torch.tensor(images.train.labels),
    )


def fit(
    module: nn.Module,
    data: Data,
    steps: int = 120,
    change: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    rate: float = 0.01,
) -> nn.Module:
    """Train a module with Adam on batches of 256 training images; returns it in eval mode."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    module.train()
    for _ in range(steps):
        rows = torch.randint(0, len(data.train_y), (256,), generator=generator)
        x, y = data.train_x[rows], data.train_y[rows]
        x = x if change is None else change(module, x, y)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        for parameter, gradient in zip(
            module.parameters(), torch.autograd.grad(loss, list(module.parameters())), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
    return module.eval().requires_grad_(False)


def mlp(width: int = 64, classes: int = 10, *between: nn.Module) -> nn.Sequential:
    """A network with one hidden layer on 8 x 8 images."""
    layers = (nn.Flatten(), nn.Linear(64, width), nn.ReLU(), *between, nn.Linear(width, classes))
    return nn.Sequential(*layers)


@cache
def network() -> nn.Module:
    """An ordinary trained network."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return fit(mlp(), digits())


class Changed(nn.Module):
    """A module followed by a function of its logits and of the images."""

    def __init__(
        self, change: Callable[[Tensor, Tensor], Tensor], module: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.module, self.change = module or network(), change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.module(images), images)


class Before(nn.Module):
    """A function of the images followed by a module."""

    def __init__(self, change: Callable[[Tensor], Tensor], module: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.change = module or network(), change

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(self.change(images))
        return logits


def subject(
    module: nn.Module,
    bpda: nn.Module | None = None,
    draws: int = 0,
    data: Data | None = None,
    **fields: Any,
) -> Subject:
    """What diagnostics get of a module."""
    found = data or digits()
    randomness = Randomness(draws) if draws else None
    declared = None if bpda is None else (lambda loader: bpda)
    defense = Defense("mine", lambda loader: module, bpda=declared, randomness=randomness)
    training = (found.train_x[:TRAINED], found.train_y[:TRAINED])
    return Subject(
        module.eval().requires_grad_(False), found.x, found.y, defense, bpda, training,
        answer_work=partial(work_of_answer, module),
    )._replace(**fields)  # fmt: skip


def examine_all(built: Subject) -> dict[str, Evidence]:
    """The evidence of every built-in diagnostic; as in a run, one that fails tests nothing."""
    found = {}
    for name, diagnostic in diagnostics().items():
        try:
            found[name] = diagnostic.examine_subject(built)  # type: ignore[attr-defined]
        except (RuntimeError, ValueError) as error:
            found[name] = Evidence(Finding.NOT_TESTED, f"It failed: {error}.")
    return found


def warnings_of(built: Subject) -> dict[str, str]:
    """The sentences of all warnings, by diagnostic."""
    found = examine_all(built)
    return {k: e.sentence for k, e in found.items() if e.finding is Finding.WARNING}
