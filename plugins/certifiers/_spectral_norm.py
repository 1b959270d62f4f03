"""Upper bounds of the spectral norm of matrices and convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CHANNELS = 256  # per group: with more, the singular values of a kernel take minutes
SLACK = 1 + 1e-9  # covers the rounding of the decomposition


def matrix_norm(weight: Tensor) -> float:
    """The spectral norm ||W||_2 of W [K, d], its largest singular value."""
    return float(torch.linalg.matrix_norm(weight, 2)) * SLACK


def convolution_norm(
    weight: Tensor, dilation: tuple[int, ...], groups: int, shape: torch.Size
) -> float:
    """An upper bound of ||A||_2 for a convolution with zero padding on images [C, H, W].

    A is part of the circular convolution on a torus so large that no kernel wraps around, whose
    singular values are those of the kernel's Fourier matrices (arXiv:1805.10408). A stride only
    removes rows. `weight` is [out, in, h, w]. Infinite where there are more than MAX_CHANNELS
    channels.
    """
    if min(len(weight) // groups, weight.shape[1]) > MAX_CHANNELS:
        return torch.inf
    spread = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], dilation, strict=True)]
    kernel = weight.new_zeros(*weight.shape[:2], *spread)
    kernel[..., :: dilation[0], :: dilation[1]] = weight
    torus = tuple(side + size - 1 for side, size in zip(shape[1:], spread, strict=True))
    # A real kernel's spectrum is symmetric: half of the frequencies show every singular value.
    spectrum = torch.fft.rfft2(kernel, s=torus).permute(2, 3, 0, 1)
    parts = spectrum.reshape(-1, groups, len(weight) // groups, weight.shape[1])
    return float(torch.linalg.matrix_norm(parts, 2).amax()) * SLACK
