"""Corrupted images as a perturbation set of single points (Hendrycks 2019, arXiv:1903.12261)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.core.corruptions import CORRUPTION_SET, CORRUPTIONS, SEVERITIES
from bench.threats.corrupted_images import corrupted
from bench.threats.parametric import ParametricSet
from bench.threats.random_numbers import RandomNumbers


@dataclass(frozen=True)
class Corruption(ParametricSet):
    """One corruption at one severity, chosen without regard to a model.

    A point is [7], a parameter for each of `CORRUPTIONS`: a fifth of the severity for one of them,
    and 0 for the others. All zero is the clean image; nothing lies between two severities. `eps`
    bounds the severity: 3/5 allows three of the five. The gradient at a point is zero.
    """

    name = CORRUPTION_SET

    @property
    def largest_severity(self) -> int:
        """The largest severity within `eps`."""
        return min(int(self.eps * SEVERITIES), SEVERITIES)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """One parameter for each corruption."""
        return (len(CORRUPTIONS),)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, 7]."""
        severity = (adv.detach().double() * SEVERITIES).round().long().clamp(0, SEVERITIES)
        image = x.clone()
        for place in severity.any(0).nonzero().flatten().tolist():
            for level in range(1, SEVERITIES + 1):
                rows = severity[:, place] == level
                if rows.any():
                    image[rows] = corrupted(x[rows], CORRUPTIONS[place], level)
        if adv.requires_grad:
            image = image + 0 * adv.sum(1)[:, None, None, None]
        return image

    def contains(self, adv: Tensor, x: Tensor) -> Tensor:
        """Whether points [n, 7] are one severity of one corruption within `eps`, bool [n]."""
        fifths = adv * SEVERITIES
        near = SEVERITIES * self.tolerance(1)
        whole = ((fifths - fifths.round()).abs() <= near) & (fifths >= -near)
        chosen = (fifths > 0.5).sum(1)
        inside: Tensor = (chosen <= 1) & (fifths <= self.largest_severity + near).all(1)
        return inside & whole.all(1)

    def sample(self, x: Tensor, draws: RandomNumbers) -> Tensor:
        """A corruption and a severity of at least 1, each with the same probability, [n, 7]."""
        unit = draws.uniform("point", (2,))
        kind = (unit[:, 0] * len(CORRUPTIONS)).long()
        severity = (unit[:, 1] * self.largest_severity).floor() + 1
        return self._point(kind, severity.clamp(max=self.largest_severity), x)

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        """The largest parameter of points [n, 7], rounded to a severity; the others are 0."""
        value, kind = adv.max(1)
        severity = (value * SEVERITIES).round().clamp(0, self.largest_severity)
        return self._point(kind, severity, x)

    def farthest(self, weight: Tensor, x: Tensor) -> Tensor:
        """The point [n, 7] of the set at which <weight, .> is largest."""
        value, kind = weight.max(1)
        return self._point(kind, self.largest_severity * (value > 0), x)

    def _point(self, kind: Tensor, severity: Tensor, x: Tensor) -> Tensor:
        """The points [n, 7] of corruptions `kind` [n] at severities [n]."""
        chosen = torch.arange(len(CORRUPTIONS), device=x.device) == kind[:, None]
        return chosen * (severity[:, None].to(x) / SEVERITIES)
