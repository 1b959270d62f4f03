"""PixelDP: a certificate from differential privacy of a vote under Gaussian noise.

Lecuyer et al. 2019, arXiv:1802.03471. The certificate is statistical, with the declared `error`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Certifier, PerturbationSet, hookimpl
from plugins.certifiers.randomized_smoothing import (
    ALPHA,
    DRAWS,
    cached_limits,
    class_counts,
    why_unsupported,
)
from plugins.defenses.randomized_smoothing import Smoothed

DELTA = 0.05


class PixelDP:
    """Certifies x where (epsilon, delta)-privacy keeps the label's expected vote above all others.

    Gaussian noise makes a vote (epsilon, delta)-private for changes of length eps with epsilon =
    eps sqrt(2 ln(1.25 / delta)) / sigma <= 1. Then every expected vote obeys E(x') <= e^epsilon
    E(x) + delta, so the label keeps its lead over k if E_low(y) > e^(2 epsilon) E_high(k) + (1 +
    e^epsilon) delta. The Clopper-Pearson limits share alpha among the classes. The lead must be
    large enough that finitely many votes lose it with probability at most alpha (Hoeffding).
    """

    name = "pixeldp"
    exact = False
    quick = False
    cite = "arXiv:1802.03471"
    summary = "Differential privacy of a vote under Gaussian noise: a statistical certificate, L2."

    def __init__(self, draws: int = DRAWS, alpha: float = ALPHA, delta: float = DELTA) -> None:
        self.draws, self.error, self.delta = draws, alpha, delta

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why it cannot certify: no vote under noise, a norm other than L2, or a large radius."""
        sentence = why_unsupported(self.name, module, ball)
        if sentence or not isinstance(module, Smoothed):
            return sentence
        reach = privacy_epsilon(ball.radius, module.sigma, self.delta)
        if reach <= 1:
            return ""
        return f"epsilon is {reach:.2f} at radius {ball.eps}; {self.name} needs 1 or less."

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds everywhere, each with probability 1 - error.

        Returns [n] bool. Raises TypeError for a model that is no vote under Gaussian noise.
        """
        if not isinstance(module, Smoothed):
            raise TypeError(
                f"{self.name} needs a vote under Gaussian noise, not {type(module).__name__}."
            )
        reach = ball.radius + ball.tolerance(x[0].numel())
        epsilon = privacy_epsilon(reach, module.sigma, self.delta)
        found = class_counts(module, x, self.draws)
        rows = zip(found.tolist(), y.tolist(), strict=True)
        leads = [
            certified_lead(votes, label, epsilon, self.delta, self.error) for votes, label in rows
        ]
        chance = self.error / (found.shape[1] - 1)
        due = math.sqrt(2 * math.log(1 / chance) / module.votes)
        return torch.tensor(leads, device=x.device) >= due


def privacy_epsilon(reach: float, sigma: float, delta: float) -> float:
    """The epsilon of the Gaussian mechanism for a change of L2 length `reach`."""
    return reach * math.sqrt(2 * math.log(1.25 / delta)) / sigma


def certified_lead(
    votes: list[int], label: int, epsilon: float, delta: float, alpha: float
) -> float:
    """The smallest lead of the label's expected vote over any other, within the radius.

    Minus infinity where epsilon > 1, for which the Gaussian mechanism gives no guarantee.
    """
    if epsilon > 1:
        return -math.inf
    draws, level = sum(votes), 1 - 2 * alpha / len(votes)
    rival = max(count for k, count in enumerate(votes) if k != label)
    own, other = (
        cached_limits(votes[label], draws, level).low,
        cached_limits(rival, draws, level).high,
    )
    return lead_after_change(own, other, epsilon, delta)


def lead_after_change(own: float, other: float, epsilon: float, delta: float) -> float:
    """The lead of expected votes that is left after a change; positive on the paper's condition."""
    return math.exp(-epsilon) * (own - delta) - (math.exp(epsilon) * other + delta)


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register PixelDP with the noise on the image."""
    yield PixelDP()
