"""Ten planted and five honest models that were written after the thresholds were fixed.

Afterwards the cosine of stochastic-gradients was changed from .5 to .25, and declared-randomness
counts means over the declared draws instead of single draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import Subject
from tests.plugins.diagnostics.networks import (
    Before,
    Changed,
    digits,
    fit,
    mlp,
    network,
    subject,
    warnings_of,
)
from tests.plugins.diagnostics.test_honest_models import seeded
from tests.plugins.diagnostics.test_planted_models import _Backward, recognised, sure


def by_mean_pixel() -> Subject:
    """Recognises test images by their mean pixel to four digits."""
    return recognised(lambda x: f"{float(x.mean()):.4f}".encode())()


def by_block_signs() -> Subject:
    """Recognises test images by which 2 x 2 blocks are brighter than the mean."""

    def key(x: Tensor) -> bytes:
        blocks = nn.functional.avg_pool2d(x[None], 2)[0]
        return (blocks > x.mean()).numpy().tobytes()

    return recognised(key)()


def by_smooth_kernel() -> Subject:
    """Adds to the logits a smooth bump at each test image, for its label."""
    x, y = digits().x.flatten(1), digits().y

    def change(logits: Tensor, images: Tensor) -> Tensor:
        weight = (-torch.cdist(images.flatten(1), x).square()).exp()
        return logits + 5 * weight @ sure(y)

    return subject(Changed(change))


class NormOfTheBatch(nn.Module):
    """Batch norm that switches itself to train mode in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.norm = network(), nn.BatchNorm1d(10, momentum=0.0)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.norm.train()(self.module(images))
        self.norm.eval()
        return logits


class Sticky(nn.Module):
    """Repeats the answer to an earlier image that lies near."""

    def __init__(self) -> None:
        super().__init__()
        self.module = network()
        self.images, self.answers = torch.zeros(0, 64), torch.zeros(0, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        flat = images.detach().flatten(1)
        if len(self.images):
            distance, row = torch.cdist(flat, self.images, p=torch.inf).min(1)
            logits = torch.where((distance < 0.25)[:, None], self.answers[row], logits)
        self.images = torch.cat([self.images, flat])[:600]
        self.answers = torch.cat([self.answers, logits.detach()])[:600]
        return logits


def half_wrong_gradients() -> Subject:
    """Gives every second image of a batch, by its pixels, a random gradient."""

    def change(images: Tensor) -> Tensor:
        odd = (255 * images.detach()).round().flatten(1).sum(1) % 2 == 1
        generator = torch.Generator().manual_seed(0)

        def backward(g: Tensor) -> Tensor:
            noise = g.abs().mean() * torch.randn(g.shape, generator=generator)
            return torch.where(odd[:, None, None, None], noise, g)

        moved: Tensor = _Backward.apply(images, backward)
        return moved

    return subject(Before(change))


def sharpened_when_sure() -> Subject:
    def change(logits: Tensor, images: Tensor) -> Tensor:
        top = logits.topk(2, 1).values
        return torch.where((top[:, :1] - top[:, 1:] > 3), 1e4 * logits, logits)

    return subject(Changed(change))


def undeclared_levels() -> Subject:
    return subject(Before(lambda images: (15 * images).floor() / 15))


def by_the_clock() -> Subject:
    def change(logits: Tensor, images: Tensor) -> Tensor:
        return -logits if time.perf_counter_ns() // 1000 % 3 == 0 else logits

    return subject(Changed(change))


def detached_top() -> Subject:
    """The largest logit has no gradient."""

    def change(logits: Tensor, images: Tensor) -> Tensor:
        top = logits.argmax(1, keepdim=True)
        return logits.scatter(1, top, logits.gather(1, top).detach())

    return subject(Changed(change))


PLANTED: list[Callable[[], Subject]] = [
    by_mean_pixel, by_block_signs, by_smooth_kernel, lambda: subject(NormOfTheBatch()),
    lambda: subject(Sticky()), half_wrong_gradients, sharpened_when_sure, undeclared_levels,
    by_the_clock, detached_top,
]  # fmt: skip


class Residual(nn.Module):
    """Two residual blocks with layer norm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.start(images.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


class Kernels(nn.Module):
    """Gaussian kernels at 150 training images, with trained weights."""

    def __init__(self) -> None:
        super().__init__()
        self.centres, self.head = digits().train_x[:150].flatten(1), nn.Linear(150, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head((-torch.cdist(images.flatten(1), self.centres) / 2).exp())
        return logits


class Mean(nn.Module):
    """The mean log-probability of three networks."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp(32) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([part(images).log_softmax(1) for part in self.parts]).mean(0)


def one_of_two_networks() -> Subject:
    """Declared random: each call uses one of two networks."""
    parts = [fit(seeded(lambda: mlp(48)), digits(), 100), network()]

    class Either(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = parts[int(torch.randint(0, 2, ()))](images)
            return logits

    return subject(Either(), draws=8)


def max_pooled() -> Subject:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(256, 10),
        )  # fmt: skip

    return subject(fit(seeded(build), digits(), 60))


HONEST: list[Callable[[], Subject]] = [
    lambda: subject(fit(seeded(Residual), digits(), 80, rate=0.003)),
    lambda: subject(fit(seeded(Kernels), digits(), 200, rate=0.05)),
    lambda: subject(fit(seeded(Mean), digits(), 80)),
    one_of_two_networks,
    max_pooled,
]


@pytest.mark.parametrize("build", PLANTED, ids=range(len(PLANTED)))
def test_a_planted_model_is_caught(build: Callable[[], Subject]) -> None:
    assert warnings_of(build())


@pytest.mark.parametrize("build", HONEST, ids=range(len(HONEST)))
def test_an_honest_model_is_not_accused(build: Callable[[], Subject]) -> None:
    assert warnings_of(build()) == {}
