"""Stochastic activation pruning: drops hidden values at random, small ones more often.

Dhillon et al. 2018, arXiv:1803.01442.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, hookimpl, require_type

SHARE = 0.5
TINY = 1e-30  # where all values are zero
MAX_PROBABILITY = 1 - 1e-6  # p = 1 has no finite gradient


def survival_probability(hidden: Tensor, share: float) -> Tensor:
    """The probability 1 - (1 - p)^r [n, ...] that a value is among r draws with replacement.

    p = |h| / sum |h| over the values of one example, `hidden` is [n, ...], and r is `share` of
    their number.
    """
    size = hidden.abs().flatten(1)
    p = size / size.sum(1, keepdim=True).clamp_min(TINY)
    draws = share * size.shape[1]
    return -torch.expm1(draws * torch.log1p(-p.clamp_max(MAX_PROBABILITY))).view_as(hidden)


class ActivationPruning(nn.Module):
    """A layer that returns h / q with probability q, else 0; each value is drawn independently.

    The mean of the output is h.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [n, ...] to pruned values of the same shape; new draws on every call."""
        q = survival_probability(hidden, self.share).clamp_min(TINY)
        return torch.where(torch.rand_like(q) < q, hidden / q, torch.zeros_like(q))


def with_pruning(network: nn.Sequential, share: float) -> nn.Sequential:
    """The network with pruning after each ReLU."""
    parts: list[nn.Module] = []
    for layer in network:
        parts += [layer, ActivationPruning(share)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*parts)


def build(loader: Loader) -> nn.Module:
    """The undefended network with pruning; it is not trained for it."""
    network = require_type(loader.defense("undefended"), nn.Sequential, "the undefended network")
    return with_pruning(network, SHARE)


def bpda(loader: Loader) -> nn.Module:
    """The BPDA approximation: the network without pruning, which is its mean.

    The gradient of pruning is misleading: as h grows, h / q hardly changes.
    """
    return loader.defense("undefended")


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the defense as a random one."""
    yield Defense(
        name="activation-pruning",
        cite="arXiv:1803.01442",
        summary="Drops small hidden values of the undefended network at random.",
        build=build,
        bpda=bpda,
        randomness=Randomness(draws=4),
        quick=False,
    )
