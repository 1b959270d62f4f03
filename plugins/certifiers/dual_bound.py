"""Dual bound of the convex outer polytope: a certificate from one backward pass.

Wong and Kolter 2018, arXiv:1711.00851. Each ReLU with an open sign is relaxed to its convex hull, a
triangle. Any dual point of the resulting linear program gives a bound; the one below is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Certifier, PerturbationSet, hookimpl
from plugins.certifiers._network_graph import (
    Affine,
    Box,
    MaxPool,
    Network,
    ReLU,
    Step,
    inputs_of,
    propagate_boxes,
    read_network,
)
from plugins.certifiers.interval import (
    certify_in_batches,
    interval_margins,
    margin_weights,
    perturbation_box,
    why_unsupported,
)

MAX_VALUES = 1 << 20  # of one layer in one backward pass


class DualBound:
    """Certifies x where the dual bound keeps every other logit below the label's.

    The inputs of the ReLUs are bounded in the same way, layer by layer, where their signs are open.
    Where a larger share of a layer than `reach` is open, an example keeps its interval bounds,
    because it would hardly be certified.
    """

    name = "dual-bound"
    exact = False
    quick = False
    cite = "arXiv:1711.00851"
    summary = "The linear-programming dual bound of ReLU networks, over ball and box."

    def __init__(self, reach: float = 2 / 3) -> None:
        self.reach = reach

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why the module has no linear relaxation here; empty where it has one."""
        sentence = why_unsupported(self.name, module)
        if not sentence and read_network(module).count(MaxPool):
            return f"the model has max pooling; {self.name} has no relaxation for it."
        return sentence

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds on every image of ball and box, [n] bool."""
        return certify_in_batches(self._part, module, x, y, ball)

    def _part(self, network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        boxes = propagate_boxes(network, perturbation_box(x, ball))
        certified = (interval_margins(network, boxes, y) > 0).all(1)
        rest = (~certified).nonzero()[:, 0]
        if len(rest):
            certified[rest] = self._dual(network, x[rest], y[rest], ball)
        return certified

    def _dual(self, network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        region = Region(x.double(), ball)
        boxes = refined_boxes(network, region, self.reach)
        return (dual_margins(network, boxes, region, y) > 0).all(1)


class Region(NamedTuple):
    """The allowed images: ball and pixel box around each x, in float64."""

    x: Tensor
    """[n, C, H, W]."""
    ball: PerturbationSet

    @property
    def box(self) -> Box:
        """The box around the region, the referee's tolerance included."""
        return perturbation_box(self.x, self.ball)

    @property
    def is_box(self) -> bool:
        """Whether every corner of that box is allowed; then intervals are exact up to a ReLU."""
        up, down = self.x + self.ball.radius, self.x - self.ball.radius
        corner = torch.where(self.x < 0.5, up, down).clamp(0, 1)
        return bool(self.ball.contains(corner, self.x).all())

    def extremes(self, weight: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """The least and largest <weight, image> [m], for weights [m, C, H, W] of rows [m]."""
        x = self.x[row]
        # An image within the tolerance is this close to one inside ball and box.
        spare = self.ball.tolerance(x[0].numel()) * weight.flatten(1).abs().sum(1)
        low = (weight * self.ball.farthest(-weight, x)).flatten(1).sum(1)
        high = (weight * self.ball.farthest(weight, x)).flatten(1).sum(1)
        return low - spare, high + spare


def dual_margins(network: Network, boxes: list[Box], region: Region, y: Tensor) -> Tensor:
    """Dual lower bounds [n, K - 1] float64 of z_y - z_k, for labels y [n]."""
    slopes = margin_weights(y, boxes[-1].lower.shape[1])
    row = torch.arange(len(y), device=y.device).repeat_interleave(slopes.shape[1])
    at = len(network.steps) - 1
    return dual_bounds(network, boxes, region, at, slopes.flatten(0, 1), row).lower.view(len(y), -1)


def refined_boxes(network: Network, region: Region, reach: float) -> list[Box]:
    """Boxes around every step; those in front of ReLUs are tightened by their own dual bounds."""
    plain = region.is_box

    def refine(boxes: list[Box], step: Step) -> Box:
        """The tightened box in front of a ReLU."""
        at = step.inputs[0]
        seen = any(isinstance(earlier.op, ReLU) for earlier in network.steps[: at + 1])
        return (
            boxes[at + 1]
            if plain and not seen
            else tightened_box(network, boxes, region, at, reach)
        )

    return propagate_boxes(network, region.box, refine)


def tightened_box(network: Network, boxes: list[Box], region: Region, at: int, reach: float) -> Box:
    """The box of one step, intersected with the dual bounds of its units with an open sign."""
    lower, upper = (side.flatten(1).clone() for side in boxes[at + 1][:2])
    open_ = (lower < 0) & (upper > 0)
    open_ &= open_.double().mean(1, keepdim=True) <= reach
    row, unit = open_.nonzero(as_tuple=True)
    shape = boxes[at + 1].lower.shape[1:]
    per_pass = units_per_pass(boxes)
    for first in range(0, len(row), per_pass):
        here = row[first : first + per_pass], unit[first : first + per_pass]
        slope = F.one_hot(here[1], lower.shape[1]).to(lower.dtype).view(-1, *shape)
        found = dual_bounds(network, boxes, region, at, slope, here[0])
        lower[here] = torch.maximum(lower[here], found.lower)
        upper[here] = torch.minimum(upper[here], found.upper)
    return Box(lower.view(-1, *shape), upper.view(-1, *shape), boxes[at + 1].rounding)


def units_per_pass(boxes: list[Box]) -> int:
    """How many units fit into one backward pass."""
    return max(1, MAX_VALUES // max(box.lower[0].numel() for box in boxes))


def dual_bounds(
    network: Network, boxes: list[Box], region: Region, at: int, slope: Tensor, row: Tensor
) -> Box:
    """Bounds [m] of <slope, step `at`> over the regions of rows [m]; `slope` is [m, ...].

    The backward pass applies A^T for a layer. A ReLU on [l, u] has the slope d = u / (u - l) of its
    triangle, d z <= max(z, 0) <= d (z - l), where l < 0 < u; elsewhere d is 1 above and 0 below.
    """
    pending = {at: slope}
    low = high = slope.new_zeros(len(slope))
    for place in range(at, -1, -1):
        weight = pending.pop(place, None)
        if weight is None:
            continue
        step = network.steps[place]
        op = step.op
        before, stray = inputs_of(step, boxes)[0], boxes[place + 1].rounding
        if stray is not None:
            spare = (weight.abs() * stray[row]).flatten(1).sum(1)
            low, high = low - spare, high + spare
        if isinstance(op, Affine):
            constant = (weight * op.offset(before.lower[:1])).flatten(1).sum(1)
            low, high = low + constant, high + constant
            weight = op.apply_transpose(weight, before.lower.shape[1:])
        elif isinstance(op, ReLU):
            weight, lift = relu_relaxation(weight, before.lower[row], before.upper[row])
            low = low + lift.clamp_max(0).flatten(1).sum(1)
            high = high + lift.clamp_min(0).flatten(1).sum(1)
        for source in step.inputs:
            pending[source] = pending[source] + weight if source in pending else weight
    least, largest = region.extremes(pending[-1], row)
    return Box(low + least, high + largest)


def relu_relaxation(weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The weight on a ReLU's input and the constant of its upper side: w d and -w d l, [m, ...]."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    slope = high / (high - low).clamp_min(torch.finfo(high.dtype).tiny)
    weight = weight * slope
    return weight, -weight * low


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register the dual bound."""
    yield DualBound()
