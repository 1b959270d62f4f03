"""Straight-through gradients for non-differentiable functions (BPDA, arXiv:1802.00420)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.core.statistics import clopper_pearson as clopper_pearson


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(images)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` going forward, to the bit; the identity going back (BPDA, arXiv:1802.00420).

    `function` maps images to images of the same shape.
    """
    return lambda images: _StraightThrough.apply(images, function)
