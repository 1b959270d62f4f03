"""White-box robust accuracy of an open model: in closed form, or by PGD written out in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS, STARTS = 60, 2


def robust(module: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """[n] bool: right and unbroken within the L-infinity ball and [0, 1]; upper bound for PGD.

    x is [n, C, H, W], y [n]. Linear models have the exact answer.
    """
    layers = list(module.children())
    if len(layers) == 2 and isinstance(layers[0], nn.Flatten) and isinstance(layers[1], nn.Linear):
        return exact_linear(layers[1], x, y, radius)
    left = right(module(x), y)
    for start in range(STARTS):
        for loss in (cross_entropy, margin):
            left &= unbroken(module, x, y, radius, loss, start)
    return left


def exact_linear(layer: nn.Linear, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """[n] bool: whether no image of the ball and the box has a larger logit of another class."""
    low, high = (x - radius).clamp(0, 1).flatten(1), (x + radius).clamp(0, 1).flatten(1)
    left = torch.ones(len(x), dtype=torch.bool)
    for t in range(layer.out_features):
        away = layer.weight[t] - layer.weight[y]
        worst = torch.maximum(away * low, away * high).sum(1) + layer.bias[t] - layer.bias[y]
        left &= (worst < 0) | (y == t)
    return left


def right(logits: Tensor, y: Tensor) -> Tensor:
    """[n] bool: finite logits [n, K] with the largest at the label [n]."""
    return logits.isfinite().all(1) & (logits.argmax(1) == y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """[n] of logits [n, K] scaled to a spread of ten, so that float32 does not saturate."""
    spread = (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)).detach()
    return F.cross_entropy(10 * logits / spread.clamp_min(1e-30), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit less that of the label, [n]."""
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


def unbroken(
    module: nn.Module, x: Tensor, y: Tensor, radius: float, loss: object, start: int
) -> Tensor:
    """[n] bool: right at the clean image and at each iterate of PGD with a falling step."""
    generator = torch.Generator().manual_seed(start)
    adv = (x + radius * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    left = right(module(x).detach(), y)
    for step in range(STEPS):
        leaf = adv.clone().requires_grad_()
        logits = module(leaf)
        left &= right(logits.detach(), y)
        (gradient,) = torch.autograd.grad(loss(logits, y).sum(), leaf)  # type: ignore[operator]
        rate = radius * (0.3 if step < STEPS // 3 else 0.1 if step < 2 * STEPS // 3 else 0.03)
        adv = (x + (adv + rate * gradient.sign() - x).clamp(-radius, radius)).clamp(0, 1)
    return left & right(module(adv).detach(), y)
