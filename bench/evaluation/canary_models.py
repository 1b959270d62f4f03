"""Canaries: small defenses whose robust accuracy is known in closed form, and planted fakes.

Images have 4 x 4 pixels that stay so far inside [0, 1] that no perturbation set used here meets the
edge; no example lies within 5 % of the radius, so that rounding decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.threats.norms import L1, L2, Linf, PerturbationSet

CANARY_IMAGES = 64
_PIXELS = 16
_CLEAR = 0.05
"""Smallest distance of an example from the radius, as a share of the radius."""
_DUAL = {"Linf": 1, "L2": 2, "L1": np.inf}
"""Norm of a set -> order of its dual norm."""
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Canary:
    """A defense with images of which it is known whether an adversarial example exists."""

    name: str
    ball: PerturbationSet
    model: nn.Module
    """Images [n, 1, 4, 4] to logits [n, K]."""
    images: npt.NDArray[np.uint8]
    """[n, 1, 4, 4]."""
    labels: npt.NDArray[np.int64]
    """[n]: the model's own answers on the images."""
    breakable: npt.NDArray[np.bool_]
    """[n]: whether the set around the image has an adversarial example."""
    classes: int
    exact: tuple[str, ...] = ()
    """Attacks each of which finds every adversarial example."""
    together: tuple[str, ...] = ()
    """Attacks which find every adversarial example together."""
    bpda: nn.Module | None = None
    """The declared BPDA approximation."""
    warning: str = ""
    """Of a fake: the diagnostic that must raise a warning; honest ones must raise none."""


LINF_ATTACKS = ("fgsm", "bim", "pgd", "pgd-margin", "apgd-ce", "deepfool", "fab")
L2_ATTACKS = ("fgm-l2", "bim", "pgd", "pgd-margin", "apgd-ce", "deepfool", "fab")
L1_ATTACKS = ("fgm-l1", "pgd", "pgd-margin", "apgd-l1-ce", "deepfool", "fab")
RADII: dict[str, tuple[PerturbationSet, tuple[str, ...]]] = {
    "linf": (Linf(Fraction(1, 20)), LINF_ATTACKS),
    "l2": (L2(Fraction(1, 5)), L2_ATTACKS),
    "l1": (L1(Fraction(3, 10)), L1_ATTACKS),
}


class LargestOf(nn.Module):
    """Logits 0 and max_j (w_j x + b_j): class 1 where one of the linear functions is positive."""

    def __init__(self, weight: Doubles, bias: Doubles) -> None:
        super().__init__()
        self.rows = _linear(weight, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 4, 4] to logits [n, 2]."""
        largest = self.rows(images).amax(1)
        return torch.stack([torch.zeros_like(largest), largest], 1)


class Band(nn.Module):
    """Class 1 where the mean pixel lies between two thresholds; logits are piecewise linear."""

    LOW, HIGH = 0.44, 0.56

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 4, 4] to logits [n, 2]."""
        mean = images.flatten(1).mean(1)
        inside = 40 * torch.minimum(mean - self.LOW, self.HIGH - mean)
        return torch.stack([torch.zeros_like(mean), inside], 1)


class Detached(nn.Module):
    """A fake: the logits of another model without a gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 4, 4] to logits [n, K]."""
        logits: Tensor = self.inner(images)
        return logits.detach() + 0 * images.flatten(1).sum(1, keepdim=True)


class UndeclaredNoise(Detached):
    """A fake: noise in the logits that is not declared."""

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 4, 4] to logits [n, K]."""
        logits: Tensor = self.inner(images)
        return logits + 0.5 * torch.randn_like(logits)


class BatchMean(Detached):
    """A fake: logits less their mean over the batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 4, 4] to logits [n, K]."""
        logits: Tensor = self.inner(images)
        return logits - logits.mean(0)


def canaries() -> Iterator[Canary]:
    """All canaries, honest ones first."""
    for name, (ball, attacks) in RADII.items():
        yield two_classes(f"canary-linear-{name}", ball, attacks)
    yield four_classes()
    yield largest_of_three()
    yield band()
    honest = two_classes("canary-linear-linf", *RADII["linf"])
    yield replace(
        honest, name="canary-bpda", model=Detached(honest.model), bpda=honest.model,
        exact=("fgsm", "pgd"),
    )  # fmt: skip
    yield _fake(honest, "canary-detached", Detached, "zero-gradients", ("square",))
    yield _fake(honest, "canary-noise", UndeclaredNoise, "deterministic", ())
    yield _fake(honest, "canary-batch-mean", BatchMean, "batch-independent", ())


def two_classes(name: str, ball: PerturbationSet, attacks: tuple[str, ...]) -> Canary:
    """A linear classifier of two classes: breakable where |w x + b| < eps ||w||_dual."""
    random = np.random.default_rng(1)
    weight = random.normal(size=_PIXELS)
    bias = -0.5 * weight.sum()
    model = _linear(np.stack([-weight, weight]) / 2, np.array([-bias, bias]) / 2)
    reach = float(ball.radius * np.linalg.norm(weight, _DUAL[ball.name]))

    def ratio(x: Doubles) -> Doubles:
        return np.asarray(np.abs(x @ weight + bias) / reach)

    images = _half_breakable(_near_plane(random, weight, reach), ratio)
    return _canary(name, ball, model, images, ratio, 2, exact=attacks)


def four_classes() -> Canary:
    """A linear classifier: breakable where a margin is below eps ||w_y - w_t||_dual for some t."""
    ball, random = Linf(Fraction(1, 50)), np.random.default_rng(2)
    weight, bias = random.normal(size=(4, _PIXELS)), 0.1 * random.normal(size=4)
    weight -= weight.mean(1, keepdims=True)

    def ratio(x: Doubles) -> Doubles:
        logits = x @ weight.T + bias
        own = logits.argmax(1)
        gap = np.take_along_axis(logits, own[:, None], 1) - logits
        reach = float(ball.radius) * np.abs(weight[own][:, None] - weight[None]).sum(2)
        reach[np.arange(len(x)), own], gap[np.arange(len(x)), own] = 1, np.inf
        return np.asarray((gap / reach).min(1))

    images = _half_breakable(random.uniform(0.36, 0.64, (4000, _PIXELS)), ratio)
    return _canary(
        "canary-linear-4", ball, _linear(weight, bias), images, ratio, 4,
        together=("pgd", "pgd-margin", "apgd-t"),
    )  # fmt: skip


def largest_of_three() -> Canary:
    """The largest of three linear functions on images of class 0.

    Breakable where w_j x + b_j + eps ||w_j||_dual > 0 for some j.
    """
    ball, random = RADII["linf"][0], np.random.default_rng(3)
    weight = random.normal(size=(3, _PIXELS))
    reach = float(ball.radius) * np.abs(weight).sum(1)
    bias = -0.5 * weight.sum(1) - reach

    def ratio(x: Doubles) -> Doubles:
        return np.asarray((-(x @ weight.T + bias) / reach).min(1))

    drawn = random.uniform(0.36, 0.64, (4000, _PIXELS))
    images = _half_breakable(drawn[ratio(drawn) > 0.1], ratio)
    return _canary(
        "canary-largest", ball, LargestOf(weight, bias), images, ratio, 2,
        together=("pgd", "pgd-margin", "apgd-ce"),
    )  # fmt: skip


def band() -> Canary:
    """Two thresholds on the mean pixel: breakable where the nearer one is within eps."""
    ball, random = Linf(Fraction(3, 100)), np.random.default_rng(4)

    def ratio(x: Doubles) -> Doubles:
        nearer = np.minimum(np.abs(x.mean(1) - Band.LOW), np.abs(x.mean(1) - Band.HIGH))
        return np.asarray(nearer / float(ball.radius))

    drawn = random.uniform(0.38, 0.62, (4000, 1)) + random.uniform(-0.04, 0.04, (4000, _PIXELS))
    return _canary(
        "canary-band", ball, Band(), _half_breakable(drawn, ratio), ratio, 2,
        exact=("fgsm", "bim", "pgd", "pgd-margin", "apgd-ce"),
    )  # fmt: skip


def _fake(
    honest: Canary, name: str, wrap: type[Detached], warning: str, together: tuple[str, ...]
) -> Canary:
    """A fake around an honest canary; with noise nothing is known of its adversarial examples."""
    return Canary(
        name, honest.ball, wrap(honest.model), honest.images, honest.labels, honest.breakable,
        honest.classes, together=together, warning=warning,
    )  # fmt: skip


def _linear(weight: Doubles, bias: Doubles) -> nn.Module:
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(nn.Flatten(), layer)


def _near_plane(random: np.random.Generator, weight: Doubles, reach: float) -> Doubles:
    """Images [n, 16] around 0.5 whose |w x + b| is between 0.2 and 1.8 times `reach`."""
    drawn = random.uniform(0.42, 0.58, (4000, _PIXELS))
    wanted = random.uniform(0.2, 1.8, 4000) * reach * random.choice([-1, 1], 4000)
    off = wanted - (drawn - 0.5) @ weight
    moved = drawn + (off / (weight @ weight))[:, None] * weight
    return np.asarray(moved[((moved > 0.35) & (moved < 0.65)).all(1)])


def _half_breakable(drawn: Doubles, ratio: Callable[[Doubles], Doubles]) -> Doubles:
    """CANARY_IMAGES of the images [n, 16] on the 8-bit grid, half of them breakable.

    `ratio` gives the distance to the nearest adversarial example in radii, [n].
    """
    rounded = np.rint(drawn * 255) / 255
    share = ratio(rounded)
    half = CANARY_IMAGES // 2
    chosen = np.flatnonzero((share < 1 - _CLEAR) & (share > _CLEAR))[:half]
    others = np.flatnonzero((share > 1 + _CLEAR) & (share < 4))[:half]
    return np.asarray(rounded[np.concatenate([chosen, others])])


def _canary(
    name: str, ball: PerturbationSet, model: nn.Module, x: Doubles,
    ratio: Callable[[Doubles], Doubles], classes: int, *,
    exact: tuple[str, ...] = (), together: tuple[str, ...] = (),
) -> Canary:  # fmt: skip
    """The canary of a model and images [n, 16]; its labels are the model's answers."""
    images = np.rint(x * 255).astype(np.uint8).reshape(-1, 1, 4, 4)
    with torch.no_grad():
        labels = model(torch.from_numpy(images.astype(np.float32) / 255)).argmax(1).numpy()
    return Canary(name, ball, model, images, labels, ratio(x) < 1, classes, exact, together)
