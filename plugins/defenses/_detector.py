"""What the detectors share: a base network whose layers are read, a fit, and a threshold."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from bench.plugin import InnerAttack, Linf, Loader, Recipe, TrainingBatch, require_type
from plugins.defenses._cnn import cnn

BASE = "undefended"
RATE = 0.05  # of clean calibration images that a threshold rejects
KNOWN = InnerAttack("pgd", Linf(Fraction(51, 255)))  # the attack that a detector learns from
HELD_BACK = 3  # every third image sets the threshold; the others teach
RIDGE = 1.0  # in front of |w|^2 / 2, for standardised features
NEWTON = 20  # steps; the loss is convex and these are many


class Detector(Protocol):
    """A module from the layers' outputs to a score; what it knows is in its buffers."""

    threshold: Tensor
    """[]: 0 until it is calibrated."""

    def __call__(self, outputs: list[Tensor]) -> Tensor:
        """[n]: the rejection score less the threshold."""

    def learn(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Fill the buffers from layers' outputs [m, d]; row i of both is about one image."""


class Guarded(nn.Module):
    """A classifier and, last in its answer, what a detector says of its layers."""

    def __init__(self, base: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.base, self.detector = cast(nn.Sequential, base), detector

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits and rejection score less threshold [n, K + 1]."""
        outputs = layers(self.base, images)
        return torch.cat([outputs[-1], self.detector(outputs)[:, None]], 1)


def layers(base: nn.Sequential, images: Tensor) -> list[Tensor]:
    """The output [n, d] of each layer that computes something, the logits last."""
    outputs, value = [], images
    for layer in base:
        value = layer(value)
        if not isinstance(layer, nn.Flatten):
            outputs.append(value.flatten(1))
    return outputs


def widths(shape: tuple[int, int, int], classes: int) -> list[int]:
    """d of each output of the base network."""
    found = layers(cnn(shape, classes), torch.zeros(1, *shape))
    return [output.shape[1] for output in found]


def recipe(model: Callable[[tuple[int, int, int], int], nn.Module]) -> Recipe:
    """Nothing is learned by gradient: the detector is fitted to PGD on the base network."""
    return Recipe(model, epochs=0, teacher=BASE, transfer=KNOWN, fit=fit, options={"rate": RATE})


def fit(lesson: TrainingBatch) -> None:
    """Let the detector learn from each image and what the attack made of it."""
    base = require_type(lesson.teacher, nn.Sequential, "the teacher")
    attacked = require_type(lesson.transferred, Tensor, "what the known attack made")
    with torch.no_grad():
        pair = (layers(base, images) for images in (lesson.x, attacked))
        cast(Detector, lesson.model).learn(*pair)


def guarded(loader: Loader, detector: nn.Module) -> nn.Module:
    """The base network guarded by this detector, its buffers as they were fitted."""
    return Guarded(loader.defense(BASE), loader.trained(detector))


def part(outputs: list[Tensor], rows: Tensor) -> list[Tensor]:
    """These rows of every layer."""
    return [output[rows] for output in outputs]


def split(count: int) -> tuple[Tensor, Tensor]:
    """[count] bool twice: the images that teach, and those that set the threshold."""
    held_back = torch.arange(count) % HELD_BACK == 0
    return ~held_back, held_back


def calibrate(detector: Detector, clean: list[Tensor], rate: float = RATE) -> None:
    """Set the threshold so that it rejects this share of clean images, rounded down."""
    detector.threshold.zero_()
    detector.threshold.copy_(threshold(detector(clean), rate))


def threshold(scores: Tensor, rate: float) -> Tensor:
    """Half way between the k-th highest of scores [m] and the next, k = floor(rate m).

    Exactly k of them lie above it where those two differ, and a last bit moves none across.
    """
    k = int(rate * len(scores))
    if not 0 < k < len(scores):
        raise ValueError(f"{rate} of {len(scores)} scores are {k}; a threshold parts some of each.")
    top = scores.sort(descending=True).values
    return (top[k - 1] + top[k]) / 2


def logistic(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor]:
    """(w [d], b []) of the logistic regression that tells attacked [m, d] from clean features.

    min sum log(1 + exp(-t (<w, z> + b))) + RIDGE |w|^2 / 2 over standardised features z, t = +-1,
    by Newton's method; w and b are for the features as they came.
    """
    x = torch.cat([clean, attacked]).double()
    wanted = torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))]).to(x)
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = torch.cat([(x - mean) / scale, torch.ones_like(x[:, :1])], 1)
    ridge = torch.full_like(z[0], RIDGE)
    ridge[-1] = 1e-6
    w = torch.zeros_like(ridge)
    for _ in range(NEWTON):
        p = (z @ w).sigmoid()
        slope = z.T @ (p - wanted) + ridge * w
        curve = (z * (p * (1 - p))[:, None]).T @ z + ridge.diag()
        w = w - torch.linalg.solve(curve, slope)
    weight = w[:-1] / scale
    return weight.float(), (w[-1] - mean @ weight).float()
