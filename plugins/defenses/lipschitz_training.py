"""Lipschitz regularisation by Toeplitz theory: adversarial training with bounded layer norms.

Araujo et al. 2020, arXiv:2006.08391. A convolution with zero padding is a (block) Toeplitz matrix,
whose norm is at most the supremum of the kernel's trigonometric polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.plugin import (
    Defense,
    Fraction,
    InnerAttack,
    Linf,
    Recipe,
    TrainingBatch,
    cross_entropy,
    hookimpl,
)
from plugins.defenses._cnn import cnn, trained

GRID = 12  # frequencies per axis at which the polynomial is sampled
STRENGTH = 0.02


def lipschitz_bound(kernel: Tensor, grid: int = GRID) -> Tensor:
    """An upper bound [] of the L2 norm of a convolution, differentiable in its kernel.

    sqrt(sum over output channels i of max over w of sum_j |f_ij(w)|^2), f_ij(w) = sum_k K_ijk
    e^{ikw}; or the same with inputs and outputs exchanged, where that is smaller
    (arXiv:2006.08391). The maximum is taken on a grid. Between its points a real trigonometric
    polynomial of degree d rises by at most 1 / cos(pi d / grid) an axis (Ehlich and Zeller 1964).

    Args:
        kernel: [out, in, *axes], one axis or two; a matrix [out, in] is a kernel of one point.
        grid: more than twice the degree of every axis.
    """
    sizes = kernel.shape[2:]
    axes = [axis for axis, size in enumerate(sizes, 2) if size > 1]
    spectrum = torch.fft.fftn(kernel, s=[grid] * len(axes), dim=axes) if axes else kernel
    power = spectrum.abs().square().reshape(*kernel.shape[:2], -1)
    least = torch.minimum(power.sum(1).amax(1).sum(), power.sum(0).amax(1).sum())
    return (least / math.prod(math.cos(math.pi * (size - 1) / grid) for size in sizes)).sqrt()


def layer_bounds(model: nn.Module) -> list[Tensor]:
    """The bound of every convolution [out, in, *axes] and matrix [out, in], in order."""
    layers = (m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear))
    return [lipschitz_bound(layer.weight) for layer in layers]


def regularized_loss(batch: TrainingBatch, strength: float) -> Tensor:
    """Adversarial cross-entropy plus strength * sum over layers of the log of the bound, [n]."""
    loss = cross_entropy(batch.model(batch.adv), batch.y)
    return loss + strength * torch.stack(layer_bounds(batch.model)).log().sum()


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register PGD training with the regulariser."""
    inner = InnerAttack("pgd", Linf(Fraction(51, 255)), {"steps": 7, "rate": 2.5 / 7})
    yield Defense(
        name="lipschitz-training",
        cite="arXiv:2006.08391",
        summary=f"PGD training with {STRENGTH:g} times the log of a bound on each layer's norm.",
        recipe=Recipe(
            cnn,
            partial(regularized_loss, strength=STRENGTH),
            inner,
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"strength": STRENGTH, "grid": GRID},
        ),
        build=trained,
        quick=False,
    )
