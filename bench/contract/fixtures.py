"""Small models on which attacks are checked, and snapshots of state that must not change."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Split

ROWS = 32  # images in a batch: in batches of this size kernels agree to the last bit
FEATURES = 64


class RidgeClassifier(nn.Module):
    """Ridge regression on random ReLU features: smooth almost everywhere, fitted in closed form."""

    def __init__(self, inner: Tensor, outer: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inner = nn.Parameter(inner)
        self.outer = nn.Parameter(outer)
        self.bias: Tensor
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        return self.features(images) @ self.outer + self.bias

    def features(self, images: Tensor) -> Tensor:
        """Random features [n, FEATURES] of images [n, C, H, W]."""
        return torch.relu((images - 0.5).flatten(1) @ self.inner)


class ConstantClassifier(nn.Module):
    """Constant logits with an autograd graph: every gradient is zero."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits: Tensor
        self.register_buffer("logits", logits)

    def forward(self, images: Tensor) -> Tensor:
        """The same logits [n, K] for all images [n, C, H, W]."""
        return self.logits + 0 * images.flatten(1).sum(1, keepdim=True)


@dataclass(frozen=True)
class ModelFixture:
    """A model with images and their labels."""

    model: nn.Module
    x: Tensor
    """[n, C, H, W], n a multiple of ROWS."""
    y: Tensor
    classes: int


def fitted_fixture(split: Split, classes: int, images: Tensor, labels: Tensor) -> ModelFixture:
    """A model fitted to a training half, with test images [n, C, H, W] and their labels [n]."""
    x = torch.from_numpy(split.images.copy()).float() / 255
    generator = torch.Generator().manual_seed(0)
    pixels = x[0].numel()
    inner = torch.randn(pixels, FEATURES, generator=generator) / pixels**0.5
    model = RidgeClassifier(
        inner, torch.zeros(FEATURES, classes), torch.full((classes,), 1.0 / classes)
    )
    hidden = model.features(x).detach().double()
    wanted = F.one_hot(torch.from_numpy(split.labels.copy()), classes).double() - 1 / classes
    gram = hidden.T @ hidden + 1e-3 * len(x) * torch.eye(FEATURES, dtype=torch.float64)
    outer = 10 * torch.linalg.solve(gram, hidden.T @ wanted)
    return ModelFixture(RidgeClassifier(inner, outer.float(), model.bias), images, labels, classes)


def random_fixture(shape: tuple[int, int, int], classes: int) -> ModelFixture:
    """A model with random weights and random images of any shape (C, H, W)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(ROWS, *shape, generator=generator)
    inner = torch.randn(x[0].numel(), FEATURES, generator=generator)
    outer = torch.randn(FEATURES, classes, generator=generator)
    model = RidgeClassifier(inner, outer, torch.zeros(classes))
    return ModelFixture(model, x, model(x).argmax(1), classes)


class LinearClassifier(nn.Module):
    """A linear function as the logit of class 1, below the constant logit of class 0."""

    def __init__(self, weight: Tensor, classes: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("others", -torch.arange(1.0, max(classes, 2) - 1))
        self.others: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to logits [n, K]: 2, a value within 1 of 0, then -1, -2, ..."""
        value = self.value(images)[:, None]
        rest = self.others.expand(len(images), -1)
        return torch.cat([torch.full_like(value, 2.0), value, rest], 1)

    def value(self, images: Tensor) -> Tensor:
        """The linear function [n] of images [n, C, H, W]."""
        return ((images - 0.5) * self.weight).flatten(1).sum(1)


def linear_fixture(
    shape: tuple[int, int, int], classes: int
) -> tuple[LinearClassifier, ModelFixture]:
    """A linear model with grey images of label 0 (C, H, W), which no perturbation misclassifies."""
    generator = torch.Generator().manual_seed(2)
    sign = torch.randn(shape, generator=generator).sign()
    x = 0.4 + 0.2 * torch.rand(ROWS, *shape, generator=generator)
    model = LinearClassifier(sign / sign.numel(), classes)
    return model, ModelFixture(model, x, torch.zeros(ROWS, dtype=torch.int64), classes)


def constant_fixture(fixture: ModelFixture) -> ModelFixture:
    """The images of a fixture, with a model whose gradients are all zero."""
    logits = torch.linspace(0, 1, fixture.classes)
    return ModelFixture(ConstantClassifier(logits), fixture.x, fixture.y, fixture.classes)


class RandomState(NamedTuple):
    """States of the global random generators of torch, numpy and python."""

    torch: Tensor
    numpy: Any
    python: Any

    @classmethod
    def snapshot(cls) -> RandomState:
        """The current states."""
        return cls(torch.get_rng_state(), np.random.get_state(), random.getstate())

    @classmethod
    def after_draws(cls) -> RandomState:
        """The states after one draw from each, which no seeding of a generator restores."""
        torch.rand(1), np.random.rand(), random.random()
        return cls.snapshot()

    def changed(self) -> list[str]:
        """The names of the generators whose state has changed since."""
        now = RandomState.snapshot()
        moved = {
            "torch": not torch.equal(self.torch, now.torch),
            "numpy": repr(self.numpy) != repr(now.numpy) or not _same(self.numpy, now.numpy),
            "python": self.python != now.python,
        }
        return [name for name, changed in moved.items() if changed]

    def restore(self) -> None:
        """Set the generators back to these states."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def _same(one: Any, two: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


class ModelState(NamedTuple):
    """Everything about a model that queries must not change."""

    module: nn.Module
    tensors: dict[str, Tensor]
    flags: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> ModelState:
        """Copies of the weights and buffers; modes, hooks and gradients as plain values."""
        tensors = {name: value.detach().clone() for name, value in named_tensors(module)}
        flags: dict[str, Any] = {}
        for name, part in module.named_modules():
            hooks = len(part._forward_hooks) + len(part._forward_pre_hooks)
            flags[f"{name or 'the module'}, train mode or hooks"] = (part.training, hooks)
        for name, parameter in module.named_parameters():
            flags[f"{name}, gradient"] = parameter.grad is None
        return cls(module, tensors, flags)

    def changed(self) -> list[str]:
        """What has changed since, as words for a message."""
        now = ModelState.of(self.module)
        if now.tensors.keys() != self.tensors.keys():
            return ["the list of weights and buffers"]
        moved = [n for n, old in self.tensors.items() if not _equal(old, now.tensors[n])]
        return moved + [name for name, old in self.flags.items() if now.flags.get(name) != old]


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, [n] or any other shape."""
    return [*module.named_parameters(), *module.named_buffers()]


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one.nan_to_num(), two.nan_to_num())
