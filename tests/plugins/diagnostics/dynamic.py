"""Models that optimise while they answer: by gradients of several kinds, and by a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.plugin import Subject
from tests.plugins.diagnostics.networks import network, subject

STEPS = 6
SIZE = 1 / 255


def doubt(logits: Tensor) -> Tensor:
    """What the optimisations lower: the entropy [n] of the predicted distribution."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


class Dynamic(nn.Module):
    """A network whose images are first moved by `steps` steps of an optimisation."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor], steps: int = STEPS) -> None:
        super().__init__()
        self.module, self.step, self.steps = network(), step, steps

    def forward(self, images: Tensor) -> Tensor:
        moved = images.detach()
        for _ in range(self.steps):
            moved = self.step(self.module, moved).clamp(0, 1)
        logits: Tensor = self.module(images + (moved - images).detach())
        return logits


def by_grad(module: nn.Module, images: Tensor) -> Tensor:
    """A sign step by `torch.autograd.grad`."""
    with torch.enable_grad():
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(doubt(module(leaf)).sum(), leaf)
    return images - SIZE * gradient.sign()


def by_backward(module: nn.Module, images: Tensor) -> Tensor:
    """A step by an optimizer of torch."""
    with torch.enable_grad():
        change = torch.zeros_like(images).requires_grad_()
        optimizer = torch.optim.SGD([change], lr=SIZE)
        doubt(module(images + change)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return images + change.detach()


def by_func(module: nn.Module, images: Tensor) -> Tensor:
    """A sign step by `torch.func.grad`."""
    gradient: Tensor = torch.func.grad(lambda x: doubt(module(x)).sum())(images)
    return images - SIZE * gradient.sign()


def by_query_and_func(module: nn.Module, images: Tensor) -> Tensor:
    """A step by `torch.func.grad` after a query without one."""
    return torch.where(doubt(module(images)).amax() > 0, by_func(module, images), images)


def by_search(module: nn.Module, images: Tensor) -> Tensor:
    """The better of an image and its mirror image moved by one pixel, without a gradient."""
    other = images.roll(1, -1)
    better = doubt(module(other)) < doubt(module(images))
    return torch.where(better[:, None, None, None], other, images)


def optimising(
    step: Callable[[nn.Module, Tensor], Tensor], steps: int = STEPS
) -> Callable[[], Subject]:
    """A subject with such a model."""
    return lambda: subject(Dynamic(step, steps))


def costing(build: Callable[[], Subject], forwards: int) -> Callable[[], Subject]:
    """The same subject, which declares so many passes."""

    def declared() -> Subject:
        found = build()
        return found._replace(defense=replace(found.defense, forwards=forwards))

    return declared


OPTIMISING: tuple[tuple[str, Callable[[], Subject], int], ...] = (
    ("gradients", optimising(by_grad), 1),
    ("one gradient", optimising(by_grad, 1), 1),
    ("an optimizer", optimising(by_backward), 1),
    ("torch.func", optimising(by_func), 1),
    ("a search without gradients", optimising(by_search), 1),
    ("more gradients than declared", optimising(by_grad), STEPS),
)
"""What a model does, the model, and the passes that it declares, which are too few."""
