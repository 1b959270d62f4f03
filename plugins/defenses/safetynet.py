"""SafetyNet: an RBF support vector machine on binarised activations of the late ReLU layers.

Lu, Issaranon and Forsyth 2017, arXiv:1704.00103.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl
from plugins.defenses._detector import Detector, detector_defense, detector_model, layer_widths

LATE_LAYERS = (-4, -2)  # the last two ReLU layers
SVM_IMAGES = 256  # clean images, and as many attacked ones, that the SVM is fitted to
PENALTY = 10.0  # C of the SVM
SOFTNESS = 0.025  # width of a smooth bit, in standard deviations of its unit


class SafetyNet(Detector):
    """Scores binary codes c by an RBF SVM: sum_i a_i exp(-gamma |c(x) - s_i|^2) + b.

    Each bit of the code states whether a unit of the late layers is above its mean on clean images,
    so the score is piecewise constant. With `smooth` a bit is sigmoid((unit - mean) / width), which
    has a gradient.
    """

    mean: Tensor
    width: Tensor
    supports: Tensor
    lengths: Tensor
    alpha: Tensor
    gamma: Tensor
    bias: Tensor

    def __init__(self, size: int, *, smooth: bool = False) -> None:
        """Register the buffers for codes of `size` bits."""
        super().__init__()
        self.smooth = smooth
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("width", torch.ones(size))
        self.register_buffer("supports", torch.zeros(2 * SVM_IMAGES, size))
        self.register_buffer("lengths", torch.zeros(2 * SVM_IMAGES))
        self.register_buffer("alpha", torch.zeros(2 * SVM_IMAGES))
        for name in ("gamma", "bias", "threshold"):
            self.register_buffer(name, torch.zeros(()))

    def score(self, outputs: list[Tensor]) -> Tensor:
        """The decision value of the SVM [n], from layer outputs [n, d] each."""
        code = self.code(outputs)
        square = code.square().sum(1, keepdim=True) - 2 * code @ self.supports.T + self.lengths
        kernel = (-self.gamma * square).exp()
        return (kernel * self.alpha).sum(1) + self.bias

    def code(self, outputs: list[Tensor]) -> Tensor:
        """The code [n, units] of bits, or of smooth bits, from layer outputs [n, d] each."""
        above = late_units(outputs) - self.mean
        return (above / self.width).sigmoid() if self.smooth else (above > 0).to(above.dtype)

    def fit(self, clean: list[Tensor], attacked: list[Tensor]) -> None:
        """Fit means and SVM to the first images; the rest set the threshold ([m, d] each)."""
        first, rest = slice(SVM_IMAGES), slice(SVM_IMAGES, None)
        units = late_units(clean)[first]
        self.mean.copy_(units.mean(0))
        self.width.copy_((SOFTNESS * units.std(0)).clamp_min(1e-3))
        codes = [self.code([output[first] for output in outputs]) for outputs in (clean, attacked)]
        self.fit_svm(*codes)
        self.calibrate([output[rest] for output in clean])

    def fit_svm(self, clean: Tensor, attacked: Tensor) -> None:
        """Fit the SVM to codes [m, units] and store its support vectors."""
        from sklearn.svm import SVC  # imported here: it takes seconds

        codes = torch.cat([clean, attacked])
        is_attacked = torch.arange(len(codes)) >= len(clean)
        gamma = 1 / (codes.shape[1] * float(codes.var(correction=0)))
        svm = SVC(C=PENALTY, gamma=gamma).fit(codes.numpy(), is_attacked.numpy())
        used = torch.from_numpy(svm.support_).long()
        self.alpha.zero_()
        self.alpha[: len(used)] = torch.from_numpy(svm.dual_coef_[0]).float()
        self.supports[: len(used)] = codes[used]
        self.lengths.copy_(self.supports.square().sum(1))
        self.gamma.fill_(gamma)
        self.bias.fill_(float(svm.intercept_[0]))


def late_units(outputs: list[Tensor]) -> Tensor:
    """The units [n, units] of the late layers, from layer outputs [n, d] each."""
    return torch.cat([outputs[layer] for layer in LATE_LAYERS], 1)


def code_size(shape: tuple[int, int, int], classes: int) -> int:
    """The number of bits of a code."""
    sizes = layer_widths(shape, classes)
    return sum(sizes[layer] for layer in LATE_LAYERS)


def make_detector(shape: tuple[int, int, int], classes: int) -> SafetyNet:
    """The detector of the base network for images of this shape, not fitted yet."""
    return SafetyNet(code_size(shape, classes))


def bpda(loader: Loader) -> nn.Module:
    """The BPDA approximation: the detector with smooth bits, since hard bits have no gradient."""
    return detector_model(loader, SafetyNet(code_size(loader.shape, loader.classes), smooth=True))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the detector, fitted to PGD images."""
    yield detector_defense(
        make_detector,
        name="safetynet",
        cite="arXiv:1704.00103",
        summary="Rejects images whose late ReLU activations, as binary codes, an SVM takes for "
        "attacked.",
        bpda=bpda,
    )
