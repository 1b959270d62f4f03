"""A layer of Gaussian noise, active in training and at test time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """A layer h + N(0, sigma^2), with new noise on every call."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [n, ...] with noise added, of the same shape."""
        return hidden + self.sigma * torch.randn_like(hidden)
