"""Where a linearised border lies, and where a straight line crosses the true one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import PerturbationSet, per_image, select_column


class LinearBoundary(NamedTuple):
    """A linearised border {z : gap + <slope, z - point> = 0}."""

    slope: Tensor
    """[n, C, H, W]."""
    gap: Tensor
    """[n]: positive beyond the border."""


def nearest_boundary(
    ball: PerturbationSet, point: Tensor, slopes: Tensor, gaps: Tensor
) -> LinearBoundary:
    """The border with the least |gap| / ||slope||*; slopes [n, k, C, H, W], gaps [n, k].

    A border without slope is out of reach.
    """
    across = (-gaps.sign()[:, :, None, None, None] * slopes).flatten(0, 1)
    points = point[:, None].expand_as(slopes).flatten(0, 1)
    dual = dual_norm(across, ball.steepest(across, points)).view_as(gaps)
    best = torch.where(dual > 0, gaps.abs() / dual, torch.inf).argmin(1)
    row = torch.arange(len(best), device=best.device)
    return LinearBoundary(slopes[row, best], select_column(gaps, best))


def step_onto(ball: PerturbationSet, point: Tensor, border: LinearBoundary) -> Tensor:
    """[n, C, H, W]: the step |gap| / ||slope||* in the steepest direction: it closes the gap."""
    across = per_image(-border.gap.sign()) * border.slope
    direction = ball.steepest(across, point)
    dual = dual_norm(across, direction)
    return per_image(torch.where(dual > 0, border.gap.abs() / dual, 0)) * direction


def dual_norm(slope: Tensor, direction: Tensor) -> Tensor:
    """[n]: ||w||* = <w, steepest(w)>, over the pixels that can move."""
    return (slope * direction).flatten(1).sum(1)


class Segment(NamedTuple):
    """A line from a right answer to a wrong one."""

    inner: Tensor
    """[n, C, H, W]: answered right."""
    inner_margin: Tensor
    """[n]: its margin, not positive."""
    outer: Tensor
    """[n, C, H, W]: answered wrong."""
    outer_margin: Tensor
    """[n]: its margin, not negative."""

    def crossing(self, lean: float) -> Tensor:
        """Where the margin would be zero if linear, `lean` of the rest of the way beyond it."""
        share = (
            (self.inner_margin / (self.inner_margin - self.outer_margin)).nan_to_num(1).clamp(0, 1)
        )
        share = share + lean * (1 - share)
        return (self.inner + per_image(share) * (self.outer - self.inner)).clamp(0, 1)

    def narrowed(self, image: Tensor, margin: Tensor, wrong: Tensor) -> Segment:
        """The part that still crosses the border, once `image` between the ends is answered."""
        rows = per_image(wrong)
        return Segment(
            torch.where(rows, self.inner, image),
            torch.where(wrong, self.inner_margin, margin),
            torch.where(rows, image, self.outer),
            torch.where(wrong, margin, self.outer_margin),
        )
