"""Shared parts of the detectors: base classes, the detector model, its recipe and its threshold.

A detector maps the layer outputs of the undefended network to a rejection score. It is fitted to
clean images and to what PGD made of them, and its threshold is set on clean images.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.plugin import Defense, InnerAttack, Linf, Loader, Recipe, TrainingBatch, require_type
from plugins.defenses._cnn import cnn

BASE = "undefended"
"""The defense whose network is the base network."""
RATE = 0.05
"""Share of clean calibration images that a threshold rejects."""
TRAINING_ATTACK = InnerAttack("pgd", Linf(Fraction(51, 255)))
"""The attack on the base network whose images a detector is fitted to."""
CALIBRATION_STRIDE = 3
"""Every third image sets the threshold; the regression is fitted to the others."""
RIDGE = 1.0  # in front of |w|^2 / 2, for standardised features
NEWTON_STEPS = 20  # the loss is convex, so 20 steps converge


class Detector(nn.Module):
    """Base class of the detectors: a rejection score from layer outputs, and its threshold.

    A subclass defines `score` and `fit` and registers its buffers, `threshold` [] among them.
    """

    threshold: Tensor

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """The rejection score less the threshold [n], from layer outputs [n, d] each."""
        return self.score(outputs) - self.threshold

    def score(self, outputs: list[Tensor]) -> Tensor:
        """The rejection score [n], larger for attacked images, from layer outputs [n, d] each.

        Raises NotImplementedError where a subclass does not define it.
        """
        raise NotImplementedError

    def fit(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Fill the buffers from layer outputs [m, d] each; row i of both is of the same image.

        Raises NotImplementedError where a subclass does not define it.
        """
        raise NotImplementedError

    def calibrate(self, clean: list[Tensor], rate: float = RATE) -> None:
        """Set the threshold that rejects `rate` of these clean images, rounded down ([m, d] each).

        Raises ValueError where that is none of them or all of them.
        """
        self.threshold.zero_()
        self.threshold.copy_(score_threshold(self(clean), rate))


class LinearDetector(Detector):
    """Base class of detectors that score features by logistic regression: <w, features> + b."""

    weight: Tensor
    bias: Tensor

    def __init__(self, size: int) -> None:
        """Register the buffers of a regression on `size` features."""
        super().__init__()
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))

    def features(self, outputs: list[Tensor]) -> Tensor:
        """Features [n, size] from layer outputs [n, d] each.

        Raises NotImplementedError where a subclass does not define it.
        """
        raise NotImplementedError

    def score(self, outputs: list[Tensor]) -> Tensor:
        """The rejection score <w, features> + b [n], from layer outputs [n, d] each."""
        return (self.features(outputs) * self.weight).sum(1) + self.bias

    def fit(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Fit the regression to two thirds of the images; the rest set the threshold ([m, d])."""
        fitted, calibrating = calibration_split(len(clean[0]))
        weight, bias = logistic_regression(
            self.features(select_rows(clean, fitted)), self.features(select_rows(attacked, fitted))
        )
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.calibrate(select_rows(clean, calibrating))


MakeDetector = Callable[[tuple[int, int, int], int], Detector]
"""(shape, classes) -> a detector of the base network for these images, not fitted yet."""


class DetectorModel(nn.Module):
    """A classifier followed by a detector on its layer outputs."""

    def __init__(self, base: nn.Module, detector: nn.Module) -> None:
        super().__init__()
        self.base, self.detector = cast(nn.Sequential, base), detector

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits and rejection score less threshold [n, K + 1]."""
        outputs = layer_outputs(self.base, images)
        return torch.cat([outputs[-1], self.detector(outputs)[:, None]], 1)


def layer_outputs(base: nn.Sequential, images: Tensor) -> list[Tensor]:
    """The flattened output [n, d] of each layer but `nn.Flatten`, the logits last.

    `images` are [n, C, H, W].
    """
    outputs, value = [], images
    for layer in base:
        value = layer(value)
        if not isinstance(layer, nn.Flatten):
            outputs.append(value.flatten(1))
    return outputs


def layer_widths(shape: tuple[int, int, int], classes: int) -> list[int]:
    """The number of values d of each layer output of the base network."""
    outputs = layer_outputs(cnn(shape, classes), torch.zeros(1, *shape))
    return [output.shape[1] for output in outputs]


def detector_defense(make: MakeDetector, **record: Any) -> Defense:
    """The record of a defense that adds the detector of `make` to the undefended network.

    `record` holds the fields that differ between detectors: name, source, summary, ...
    """

    def build(loader: Loader) -> nn.Module:
        """The undefended network with the fitted detector."""
        return detector_model(loader, make(loader.shape, loader.classes))

    recipe = Recipe(
        make, epochs=0, teacher=BASE, transfer=TRAINING_ATTACK, fit=fit, options={"rate": RATE}
    )
    return Defense(recipe=recipe, build=build, rejects=RATE, quick=False, **record)


def fit(batch: TrainingBatch) -> None:
    """Fit the detector to the layer outputs of each clean image and of its attacked copy."""
    base = require_type(batch.teacher, nn.Sequential, "the teacher")
    attacked = require_type(batch.transferred, Tensor, "the images of the training attack")
    with torch.no_grad():
        clean_outputs, attacked_outputs = (
            layer_outputs(base, images) for images in (batch.x, attacked)
        )
        cast(Detector, batch.model).fit(clean_outputs, attacked_outputs)


def detector_model(loader: Loader, detector: nn.Module) -> nn.Module:
    """The base network with this detector, its buffers filled from the trained weights."""
    return DetectorModel(loader.defense(BASE), loader.trained(detector))


def select_rows(outputs: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The given rows ([n] bool) of each layer output [n, d]."""
    return [output[rows] for output in outputs]


def calibration_split(count: int) -> tuple[Tensor, Tensor]:
    """Two masks [count] bool: the images a regression is fitted to, and those for the threshold."""
    calibrating = torch.arange(count) % CALIBRATION_STRIDE == 0
    return ~calibrating, calibrating


def score_threshold(scores: Tensor, rate: float) -> Tensor:
    """The midpoint [] between the k-th highest of scores [m] and the next, k = floor(rate m).

    Exactly k scores lie above it where those two differ, and rounding moves none across. Raises
    ValueError where k is 0 or m.
    """
    k = int(rate * len(scores))
    if not 0 < k < len(scores):
        raise ValueError(
            f"a share of {rate} of {len(scores)} scores is {k} of them; a threshold needs at least "
            "one score on each side."
        )
    top = scores.sort(descending=True).values
    return (top[k - 1] + top[k]) / 2


def logistic_regression(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor]:
    """Weight w [d] and bias b [] that separate attacked [m, d] from clean features [m, d].

    They minimise sum log(1 + exp(-t (<w, z> + b))) + RIDGE |w|^2 / 2 over standardised features z,
    t = +-1, by Newton's method; w and b are returned for the features before standardisation.
    """
    x = torch.cat([clean, attacked]).double()
    label = torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))]).to(x)
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z = torch.cat([(x - mean) / scale, torch.ones_like(x[:, :1])], 1)
    ridge = torch.full_like(z[0], RIDGE)
    ridge[-1] = 1e-6
    w = torch.zeros_like(ridge)
    for _ in range(NEWTON_STEPS):
        p = (z @ w).sigmoid()
        gradient = z.T @ (p - label) + ridge * w
        hessian = (z * (p * (1 - p))[:, None]).T @ z + ridge.diag()
        w = w - torch.linalg.solve(hessian, gradient)
    weight = w[:-1] / scale
    return weight.float(), (w[-1] - mean @ weight).float()
