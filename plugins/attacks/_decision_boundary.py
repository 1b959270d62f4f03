"""Steps onto a linearised decision boundary, and secants between a correct and a wrong image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import PerturbationSet, per_row, select_column


class LinearBoundary(NamedTuple):
    """The hyperplane {z : gap + <slope, z - point> = 0}: a boundary linearised at `point`."""

    slope: Tensor
    """[n, C, H, W]."""
    gap: Tensor
    """[n]: positive where `point` is on the wrong side, that is, misclassified."""


def nearest_boundary(
    ball: PerturbationSet, point: Tensor, slopes: Tensor, gaps: Tensor
) -> LinearBoundary:
    """The boundary with the smallest distance |gap| / ||slope||* to `point` [n, C, H, W].

    `slopes` are [n, k, C, H, W] and `gaps` [n, k]. A boundary with a zero slope has infinite
    distance.
    """
    across = (-gaps.sign()[:, :, None, None, None] * slopes).flatten(0, 1)
    points = point[:, None].expand_as(slopes).flatten(0, 1)
    dual = dual_norm(across, ball.steepest(across, points)).view_as(gaps)
    best = torch.where(dual > 0, gaps.abs() / dual, torch.inf).argmin(1)
    row = torch.arange(len(best), device=best.device)
    return LinearBoundary(slopes[row, best], select_column(gaps, best))


def step_onto(ball: PerturbationSet, point: Tensor, boundary: LinearBoundary) -> Tensor:
    """The steepest step [n, C, H, W] of length |gap| / ||slope||* that closes the gap.

    `point` is [n, C, H, W].
    """
    across = per_row(-boundary.gap.sign()) * boundary.slope
    direction = ball.steepest(across, point)
    dual = dual_norm(across, direction)
    return per_row(torch.where(dual > 0, boundary.gap.abs() / dual, 0)) * direction


def dual_norm(slope: Tensor, direction: Tensor) -> Tensor:
    """The dual norm ||w||* = <w, steepest(w)> [n], over the pixels that can move.

    Both arguments are [n, C, H, W].
    """
    return (slope * direction).flatten(1).sum(1)


class Segment(NamedTuple):
    """A line segment from a correctly classified image to a misclassified one."""

    inner: Tensor
    """[n, C, H, W]: the correctly classified end."""
    inner_margin: Tensor
    """[n]: its margin, zero or negative."""
    outer: Tensor
    """[n, C, H, W]: the misclassified end."""
    outer_margin: Tensor
    """[n]: its margin, zero or positive."""

    def crossing(self, lean: float) -> Tensor:
        """The image [n, C, H, W] just beyond the point where a linear margin would be zero.

        `lean` is the share of the rest of the segment by which it lies beyond.
        """
        share = (
            (self.inner_margin / (self.inner_margin - self.outer_margin)).nan_to_num(1).clamp(0, 1)
        )
        share = share + lean * (1 - share)
        return (self.inner + per_row(share) * (self.outer - self.inner)).clamp(0, 1)

    def narrowed(self, image: Tensor, margin: Tensor, wrong: Tensor) -> Segment:
        """The part that still crosses the boundary, once `image` [n, C, H, W] is queried.

        `margin` [n] and `wrong` [n] bool are the result of that query.
        """
        rows = per_row(wrong)
        return Segment(
            torch.where(rows, self.inner, image),
            torch.where(wrong, self.inner_margin, margin),
            torch.where(rows, image, self.outer),
            torch.where(wrong, margin, self.outer_margin),
        )
