"""The tiny world that attacks are checked in, and snapshots of what nobody may touch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Split

ROWS = 32  # one unit of rows: kernels agree to the last bit within it
WIDTH = 64


class RidgeClassifier(nn.Module):
    """Random ReLU features and a ridge regression: smooth almost everywhere, fitted at once."""

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
        """[n, WIDTH]."""
        return torch.relu((images - 0.5).flatten(1) @ self.inner)


class ConstantClassifier(nn.Module):
    """Logits that do not move, with a graph all the same: every gradient is zero."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits: Tensor
        self.register_buffer("logits", logits)

    def forward(self, images: Tensor) -> Tensor:
        """The same logits [n, K] for every image."""
        return self.logits + 0 * images.flatten(1).sum(1, keepdim=True)


@dataclass(frozen=True)
class ModelFixture:
    """A model, and images that it knows or does not."""

    model: nn.Module
    x: Tensor
    """[n, C, H, W], n a multiple of ROWS."""
    y: Tensor
    classes: int


def fitted_fixture(split: Split, classes: int, images: Tensor, labels: Tensor) -> ModelFixture:
    """A model fitted to a data set's training half, and the given test images."""
    x = torch.from_numpy(split.images.copy()).float() / 255
    generator = torch.Generator().manual_seed(0)
    pixels = x[0].numel()
    inner = torch.randn(pixels, WIDTH, generator=generator) / pixels**0.5
    model = RidgeClassifier(
        inner, torch.zeros(WIDTH, classes), torch.full((classes,), 1.0 / classes)
    )
    hidden = model.features(x).detach().double()
    wanted = F.one_hot(torch.from_numpy(split.labels.copy()), classes).double() - 1 / classes
    gram = hidden.T @ hidden + 1e-3 * len(x) * torch.eye(WIDTH, dtype=torch.float64)
    outer = 10 * torch.linalg.solve(gram, hidden.T @ wanted)
    return ModelFixture(RidgeClassifier(inner, outer.float(), model.bias), images, labels, classes)


def random_fixture(shape: tuple[int, int, int], classes: int) -> ModelFixture:
    """Random weights on random images of any shape."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(ROWS, *shape, generator=generator)
    inner = torch.randn(x[0].numel(), WIDTH, generator=generator)
    outer = torch.randn(WIDTH, classes, generator=generator)
    model = RidgeClassifier(inner, outer, torch.zeros(classes))
    return ModelFixture(model, x, model(x).argmax(1), classes)


def constant_fixture(world: ModelFixture) -> ModelFixture:
    """The same images before a model without any slope."""
    logits = torch.linspace(0, 1, world.classes)
    return ModelFixture(ConstantClassifier(logits), world.x, world.y, world.classes)


class RandomState(NamedTuple):
    """The three global generators."""

    torch: Tensor
    numpy: Any
    python: Any

    @classmethod
    def snapshot(cls) -> RandomState:
        """As they stand."""
        return cls(torch.get_rng_state(), np.random.get_state(), random.getstate())

    @classmethod
    def after_draws(cls) -> RandomState:
        """After a draw from each: whoever seeds one does not come back to where it stood."""
        torch.rand(1), np.random.rand(), random.random()
        return cls.snapshot()

    def changed(self) -> list[str]:
        """The names of those that moved since."""
        now = RandomState.snapshot()
        moved = {
            "torch": not torch.equal(self.torch, now.torch),
            "numpy": repr(self.numpy) != repr(now.numpy) or not _same(self.numpy, now.numpy),
            "python": self.python != now.python,
        }
        return [name for name, changed in moved.items() if changed]

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def _same(one: Any, two: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


class ModelState(NamedTuple):
    """Everything about a model that asking it must not change."""

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
        return cls(tensors, flags)

    def changed(self, module: nn.Module) -> list[str]:
        """What differs by now."""
        now = ModelState.of(module)
        if now.tensors.keys() != self.tensors.keys():
            return ["the list of weights and buffers"]
        moved = [n for n, old in self.tensors.items() if not _equal(old, now.tensors[n])]
        return moved + [name for name, old in self.flags.items() if now.flags.get(name) != old]


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return [*module.named_parameters(), *module.named_buffers()]


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one.nan_to_num(), two.nan_to_num())
