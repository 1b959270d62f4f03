"""Helpers of the diagnostics: a seeded random state, logits, and gradients of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def seeded_random_state(x: Tensor) -> Iterator[None]:
    """Seed torch's random state on the device of x [n, C, H, W], and restore it afterwards."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        yield


def input_gradient(module: nn.Module, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient [n, C, H, W] of value(logits) [n] at x; zero where there is no graph to x."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = value(module(leaf)).sum()
        if not total.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Logits [n, K] of x [n, C, H, W], without a graph."""
    with torch.no_grad():
        logits: Tensor = module(x)
    return logits
