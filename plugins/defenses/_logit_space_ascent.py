"""Logit-space projected gradient ascent: the attack inside the training of thermometer encoding.

Buckman et al. 2018, https://openreview.net/forum?id=S18Su--CW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.plugin import cross_entropy


@dataclass(frozen=True)
class LogitSpaceAscent:
    """The attack on the discrete levels of each pixel, and its parameters.

    Level j of `levels` + 1 holds the intensities from j / levels up to the next level. A pixel has
    one logit for each level that its ball reaches, at first normal random numbers. A step adds
    `rate` times the sign of the loss's gradient to them; the network sees the expected code under
    their softmax, whose inverse temperature grows by the factor `anneal` a step. The result is the
    level of the largest logit.
    """

    radius: float
    """Largest change of a pixel."""
    levels: int = 16
    steps: int = 7
    rate: float = 1.0
    anneal: float = 1.2

    def images(self, classifier: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Images [n, C, H, W] of the chosen levels, detached, from torch's random generator.

        Args:
            classifier: codes [n, C * levels, H, W] to logits [n, K].
            x: clean images [n, C, H, W] in [0, 1].
            y: labels [n].
        """
        reached = self.reached_levels(x)
        forbidden = torch.zeros_like(reached, dtype=x.dtype).masked_fill(~reached, -torch.inf)
        logits = torch.randn(reached.shape, dtype=x.dtype, device=x.device)
        sharpness = 1.0
        for _ in range(self.steps):
            leaf = logits.detach().requires_grad_()
            shares = (sharpness * leaf + forbidden).softmax(2)
            loss = cross_entropy(classifier(expected_code(shares)), y).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            logits = logits + self.rate * gradient.sign()
            sharpness *= self.anneal
        return self.nearest_image(x, (logits + forbidden).argmax(2))

    def reached_levels(self, x: Tensor) -> Tensor:
        """The levels [n, C, levels + 1, H, W] bool of the ball around images x [n, C, H, W]."""
        lowest = (self.levels * (x - self.radius).clamp_min(0)).floor()[:, :, None]
        highest = (self.levels * (x + self.radius).clamp_max(1)).floor()[:, :, None]
        level = torch.arange(self.levels + 1, device=x.device)[:, None, None]
        return (level >= lowest) & (level <= highest)

    def nearest_image(self, x: Tensor, level: Tensor) -> Tensor:
        """The intensities [n, C, H, W] nearest to x within levels `level` [n, C, H, W] int64."""
        low = level / self.levels
        high = torch.nextafter((level + 1) / self.levels, torch.zeros_like(low)).clamp_max(1)
        return torch.minimum(torch.maximum(x, low), high)


def expected_code(shares: Tensor) -> Tensor:
    """The expected thermometer code [n, C * levels, H, W] of shares [n, C, levels + 1, H, W].

    Bit k of levels 1 to `levels` is 1 at level k and above, so that its mean is their share.
    """
    return shares.flip(2).cumsum(2).flip(2)[:, :, 1:].flatten(1, 2)
