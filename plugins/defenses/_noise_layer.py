"""A layer of Gaussian noise, in training and afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """h + N(0, sigma^2), drawn anew on every call."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, hidden: Tensor) -> Tensor:
        """The same shape."""
        return hidden + self.sigma * torch.randn_like(hidden)
