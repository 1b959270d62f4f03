"""Gradients at the points of a perturbation set, from those at their images."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.engine.model_access import input_gradient
from bench.threats.norms import PerturbationSet


def pulled_back(ball: PerturbationSet, adv: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient [n, ...] at points `adv` [n, ...], of that at their images, [n, C, H, W].

    x is [n, C, H, W]. In a norm ball, where points are images, it is the gradient itself.
    """
    if not ball.parametric:
        return gradient
    leaf = adv.detach().clone().requires_grad_()
    with torch.enable_grad():
        return input_gradient((ball.apply(leaf, x) * gradient).sum(), leaf)
