"""SafetyNet: late ReLU activations as a code of bits, and an SVM that knows attacked codes.

Lu, Issaranon and Forsyth 2017, arXiv:1704.00103.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl
from plugins.defenses._detector import RATE, calibrate, guarded, recipe, widths

LATE = (-4, -2)  # the last two ReLU layers
TAUGHT = 256  # images, clean and attacked, that the SVM is fitted to
PENALTY = 10.0  # C of the SVM
SOFT = 0.025  # width of a smooth bit, in standard deviations of its unit


class SafetyNet(nn.Module):
    """sum_i a_i exp(-gamma |c(x) - s_i|^2) + b - threshold on codes c.

    A bit of the code says whether a unit of the late layers is above its mean on clean images, so
    the score is piecewise constant. With `smooth` a bit is sigmoid((unit - mean) / width), which
    has a slope.
    """

    mean: Tensor
    width: Tensor
    supports: Tensor
    lengths: Tensor
    alpha: Tensor
    gamma: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, size: int, *, smooth: bool = False) -> None:
        super().__init__()
        self.smooth = smooth
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("width", torch.ones(size))
        self.register_buffer("supports", torch.zeros(2 * TAUGHT, size))
        self.register_buffer("lengths", torch.zeros(2 * TAUGHT))
        self.register_buffer("alpha", torch.zeros(2 * TAUGHT))
        for name in ("gamma", "bias", "threshold"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Layers' outputs to [n]: the rejection score less its threshold."""
        code = self.code(outputs)
        square = code.square().sum(1, keepdim=True) - 2 * code @ self.supports.T + self.lengths
        kernel = (-self.gamma * square).exp()
        return (kernel * self.alpha).sum(1) + self.bias - self.threshold

    def code(self, outputs: list[Tensor]) -> Tensor:
        """[n, units]: bits, or smooth bits."""
        above = late(outputs) - self.mean
        return (above / self.width).sigmoid() if self.smooth else (above > 0).to(above.dtype)

    def learn(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Fit means and SVM to the first images; the others set the threshold."""
        first, rest = slice(TAUGHT), slice(TAUGHT, None)
        units = late(clean)[first]
        self.mean.copy_(units.mean(0))
        self.width.copy_((SOFT * units.std(0)).clamp_min(1e-3))
        codes = [self.code([output[first] for output in outputs]) for outputs in (clean, attacked)]
        self.support(*codes)
        calibrate(self, [output[rest] for output in clean])

    def support(self, clean: Tensor, attacked: Tensor) -> None:
        """Fit the SVM to codes [m, units] and keep its support vectors."""
        from sklearn.svm import SVC  # seconds of import time that a list does not need

        codes = torch.cat([clean, attacked])
        known = torch.arange(len(codes)) >= len(clean)
        gamma = 1 / (codes.shape[1] * float(codes.var(correction=0)))
        machine = SVC(C=PENALTY, gamma=gamma).fit(codes.numpy(), known.numpy())
        used = torch.from_numpy(machine.support_).long()
        self.alpha.zero_()
        self.alpha[: len(used)] = torch.from_numpy(machine.dual_coef_[0]).float()
        self.supports[: len(used)] = codes[used]
        self.lengths.copy_(self.supports.square().sum(1))
        self.gamma.fill_(gamma)
        self.bias.fill_(float(machine.intercept_[0]))


def late(outputs: list[Tensor]) -> Tensor:
    """[n, units] of the late layers."""
    return torch.cat([outputs[layer] for layer in LATE], 1)


def detector(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The detector of the base network for these images, nothing learned yet."""
    return SafetyNet(size(shape, classes))


def size(shape: tuple[int, int, int], classes: int) -> int:
    """How many units have a bit."""
    every = widths(shape, classes)
    return sum(every[layer] for layer in LATE)


def build(loader: Loader) -> nn.Module:
    """The undefended network, guarded."""
    return guarded(loader, detector(loader.shape, loader.classes))


def bpda(loader: Loader) -> nn.Module:
    """The same with smooth bits: a step has no slope to follow."""
    return guarded(loader, SafetyNet(size(loader.shape, loader.classes), smooth=True))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer the detector that knows PGD."""
    yield Defense(
        name="safetynet",
        cite="arXiv:1704.00103",
        summary="Rejects codes of late ReLU activations that an SVM takes for attacked.",
        recipe=recipe(detector),
        build=build,
        bpda=bpda,
        rejects=RATE,
        quick=False,
        detail={"rows": ("F10",)},
    )
