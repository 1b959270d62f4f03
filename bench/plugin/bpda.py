"""Straight-through gradients for non-differentiable functions (BPDA, arXiv:1802.00420)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Images [n, C, H, W] to images of the same shape."""
        return function(images)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient [n, C, H, W], unchanged."""
        return grads[0], None


def straight_through(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` in the forward pass, the identity in the backward pass (arXiv:1802.00420).

    `function` maps images [n, C, H, W] to images of the same shape.

    >>> x = torch.tensor([0.4, 0.6], requires_grad=True)
    >>> straight_through(torch.round)(x).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    return lambda images: _StraightThrough.apply(images, function)
