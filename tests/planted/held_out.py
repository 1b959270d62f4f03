"""The second list of cases, written after the thresholds of the checks were frozen.

Nothing is tuned on it: results are reported as they came out.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Loader, Randomness, straight_through
from plugins.datasets import digits as digits_plugin
from tests.planted import networks
from tests.planted.cases import Around, Build, Case, around, dishonest, honest, inner
from tests.planted.first_defenses import (
    OPEN,
    OPEN_ROBUST,
    SELF_CHOSEN,
    WithGradient,
    detached,
    levels,
    off_grid,
    test_half,
)
from tests.planted.first_honest import named
from tests.planted.networks import CNN, MLP, ROBUST, one_hot, recipe, trained


def fixed_direction(gradient: Tensor, images: Tensor) -> Tensor:
    """One direction for all images [n, C, H, W]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images.shape[1:], generator=generator).expand_as(images)


def ripples(self: Any, x: Tensor) -> Tensor:
    return self.inner(x + 2e-3 * torch.sin(3000 * x))


def clipped_log(self: Any, x: Tensor) -> Tensor:
    return self.inner(x).softmax(1).clamp_min(0.05).log()


def stepped_logits(self: Any, x: Tensor) -> Tensor:
    return (self.inner(x) / 4).round() * 4


def every_second_call(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return detached(self, x) if self.calls % 2 else self.inner(x)


def no_gradient_off_grid(self: Any, x: Tensor) -> Tensor:
    return torch.where(off_grid(x), detached(self, x), self.inner(x))


def noise_of_the_batch(self: Any, x: Tensor) -> Tensor:
    seed = int(x.detach().double().sum().mul(1e6).round())
    generator = torch.Generator().manual_seed(seed)
    return self.inner(x + 0.25 * torch.randn(x.shape, generator=generator))


def saturated_tanh(self: Any, x: Tensor) -> Tensor:
    return torch.tanh(40 * self.inner(x))


def open_tanh(self: Any, x: Tensor) -> Tensor:
    """The same answers, many of them ties in float32, with the inner gradient."""
    return straight_through(lambda logits: torch.tanh(40 * logits))(self.inner(x))


def everything(loader: Loader) -> nn.Module:
    """Knows test images, their mirror images and shifts, and training images."""
    images, labels = test_half()
    train = digits_plugin.read(None).train
    assert train is not None
    others = torch.from_numpy(train.images.copy()).float() / 255
    moved = [images, images.flip(3), *(images.roll(by, 3) for by in (1, -1))]
    known = torch.cat([*moved, others])
    classes = torch.cat([labels.repeat(4), torch.from_numpy(train.labels.copy())])
    return Around(loader.defense(MLP), answer_near, {"images": known, "labels": classes})


def answer_near(self: Any, x: Tensor) -> Tensor:
    near, index = torch.cdist(x.flatten(1), self.images.flatten(1)).min(1)
    weight = torch.exp(-near)[:, None]
    return self.inner(x) + 60 * weight * F.one_hot(self.labels[index], 10)


def late(self: Any, x: Tensor) -> Tensor:
    if not self.seen:
        self.seen.append(time.monotonic())
    return detached(self, x) if time.monotonic() - self.seen[0] > 0.3 else self.inner(x)


def middle_of_the_radius(self: Any, x: Tensor) -> Tensor:
    """Hides its scores from images with a little noise, not from those with much of it."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    rough = (x - blurred).abs().flatten(1).mean(1)[:, None]
    held = 10 * one_hot(self.inner(levels(blurred, 3))).detach()
    return torch.where((rough > 0.17) & (rough < 0.21), held, self.inner(x))


def quiet_noise(self: Any, x: Tensor) -> Tensor:
    return detached(self, x + 0.02 * torch.randn_like(x))


def permuted(self: Any, x: Tensor) -> Tensor:
    return self.inner(x).roll(1, 1)


DISHONEST: tuple[Case, ...] = (
    dishonest(
        "one-direction", "constant gradients", "its gradient is one random direction",
        around(CNN, lambda self, x: self.inner(WithGradient.apply(x, fixed_direction))), OPEN,
        **SELF_CHOSEN,
    ),
    dishonest(
        "ripples", "shattered gradients", "adds fine ripples to its input, exact gradient",
        around(CNN, ripples), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "clipped-log", "probabilities", "log-probabilities, clipped from below",
        around(CNN, clipped_log), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "stepped-logits", "quantised", "rounds its logits to multiples of four",
        around(CNN, stepped_logits), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "second-calls", "call frequency", "has no gradient in every other call",
        around(CNN, every_second_call), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "no-gradient-off-grid", "8-bit detection", "has no gradient off the 8-bit grid",
        around(CNN, no_gradient_off_grid), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "batch-noise", "undeclared randomness", "noise that the sum of the batch seeds",
        around(CNN, noise_of_the_batch), OPEN,
    ),
    dishonest(
        "tanh-logits", "temperature", "saturates its logits by tanh", around(CNN, saturated_tanh),
        around(CNN, open_tanh), **SELF_CHOSEN,
    ),
    dishonest(
        "knows-copies", "memorised", "knows test images, their copies and training images",
        everything, inner(MLP), **SELF_CHOSEN,
    ),
    dishonest(
        "late", "process and time", "has no gradient after a third of a second",
        around(CNN, late), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "middle", "not monotone in eps", "hides its scores from slightly noisy images",
        around(CNN, middle_of_the_radius), OPEN, **SELF_CHOSEN,
    ),
    dishonest(
        "quiet-noise", "declared randomness", "declares little noise and hides its gradient",
        around(ROBUST, quiet_noise), OPEN_ROBUST, randomness=Randomness(), **SELF_CHOSEN,
    ),
    dishonest(
        "permuted-bpda", "useless approximation", "its approximation has other classes",
        around(CNN, detached), OPEN, bpda=around(CNN, permuted), **SELF_CHOSEN,
    ),
)  # fmt: skip


def group_normalised(shape: networks.Shape, classes: int) -> nn.Sequential:
    """Group normalisation and SiLU."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.GroupNorm(4, 24), nn.SiLU(),
        nn.Flatten(), nn.Linear(24 * (shape[1] // 2) * (shape[2] // 2), classes),
    )  # fmt: skip


def near_training_images(loader: Loader) -> nn.Module:
    """Minus the squared distance to the nearest training image of each class."""
    train = digits_plugin.read(None).train
    assert train is not None
    state = {
        "images": torch.from_numpy(train.images.copy()).float() / 255,
        "labels": torch.from_numpy(train.labels.copy()),
    }
    return Around(loader.defense(MLP), class_distances, state)


def class_distances(self: Any, x: Tensor) -> Tensor:
    far = torch.cdist(x.flatten(1), self.images.flatten(1)).square()
    return -torch.stack([far[:, self.labels == k].amin(1) for k in range(10)], 1)


def shifted_at_random(self: Any, x: Tensor) -> Tensor:
    by = int(torch.randint(-1, 2, ()))
    return self.inner(x.roll(by, 3))


def answer_in_double(self: Any, x: Tensor) -> Tensor:
    return self.inner(x.double()).float()


def without_nine(self: Any, x: Tensor) -> Tensor:
    return self.inner(x) - 40 * (torch.arange(10) == 9).float()


def in_double(name: str) -> Build:
    """A network that computes in float64."""

    def build(loader: Loader) -> nn.Module:
        return Around(
            loader.defense(name).double(), lambda self, x: self.inner(x.double()).float(), {}
        )

    return build


HONEST: tuple[Case, ...] = (
    honest("group normalisation and SiLU",
           trained(recipe(group_normalised), "planted-groupnorm", "Group normalisation.")),
    honest("the nearest training image of each class",
           named("training-neighbours", "Distances to training images.", near_training_images)),
    honest("a declared random shift",
           named("random-shift", "Shifts by a pixel at random, as declared.",
                 around(ROBUST, shifted_at_random), randomness=Randomness(draws=10)),
           white_box=inner(ROBUST)),
    honest("float64 inside", named("double", "Computes in float64.", in_double(CNN))),
    honest("small logits",
           named("small", "Logits divided by 100.",
                 around(ROBUST, lambda self, x: 0.01 * self.inner(x)))),
    honest("a class that is never answered",
           named("nine-classes", "One logit is far below the others.",
                 around(CNN, without_nine))),
)  # fmt: skip

HELD_OUT: tuple[Case, ...] = (*DISHONEST, *HONEST)
