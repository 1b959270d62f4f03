"""The dual of the convex outer polytope: a proof from one backward pass, without a solver.

Wong and Kolter 2018, arXiv:1711.00851. Every ReLU that may switch is replaced by the triangle
above it; any dual point of the resulting linear program gives a bound, and the one below is theirs.
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

MAX_VALUES = 1 << 20  # of one layer, in one backward pass


class DualBound:
    """Certifies x when the dual bound keeps every rival's logit under the label's.

    The inputs of the ReLUs are bounded in the same way, layer by layer, where their signs are open.
    Where a larger share of a layer than `reach` is open, an example keeps its interval bounds: it
    would hardly be certified, and the time goes to those that may be.
    """

    name = "dual-bound"
    exact = False
    quick = False
    cite = "arXiv:1711.00851"
    summary = "The linear-programming dual bound of ReLU networks, over ball and box."

    def __init__(self, reach: float = 2 / 3) -> None:
        self.reach = reach

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """A sentence where the module holds what has no linear relaxation here."""
        sentence = why_unsupported(self.name, module)
        if not sentence and read_network(module).count(MaxPool):
            return f"the model takes maxima over windows; {self.name} has no triangle for them."
        return sentence

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """[n] bool: right on every image of ball and box."""
        return certify_in_batches(self._part, module, x, y, ball)

    def _part(self, network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        boxes = propagate_boxes(network, perturbation_box(x, ball))
        held = (interval_margins(network, boxes, y) > 0).all(1)
        rest = (~held).nonzero()[:, 0]
        if len(rest):
            held[rest] = self._proved(network, x[rest], y[rest], ball)
        return held

    def _proved(self, network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        region = Region(x.double(), ball)
        boxes = refined_boxes(network, region, self.reach)
        return (dual_margins(network, boxes, region, y) > 0).all(1)


class Region(NamedTuple):
    """The images that are allowed: ball and pixel box around each x [n, C, H, W], in float64."""

    x: Tensor
    ball: PerturbationSet

    @property
    def box(self) -> Box:
        """Around it, the referee's tolerance included."""
        return perturbation_box(self.x, self.ball)

    @property
    def is_box(self) -> bool:
        """Is every corner of that box allowed? Then intervals are exact up to the first ReLU."""
        up, down = self.x + self.ball.radius, self.x - self.ball.radius
        corner = torch.where(self.x < 0.5, up, down).clamp(0, 1)
        return bool(self.ball.contains(corner, self.x).all())

    def extremes(self, weight: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest <weight, image> for weights [m, C, H, W] of rows [m]."""
        x = self.x[row]
        # An image that the tolerance lets in lies that near to one that ball and box hold.
        spare = self.ball.tolerance(x[0].numel()) * weight.flatten(1).abs().sum(1)
        low = (weight * self.ball.farthest(-weight, x)).flatten(1).sum(1)
        high = (weight * self.ball.farthest(weight, x)).flatten(1).sum(1)
        return low - spare, high + spare


def dual_margins(network: Network, boxes: list[Box], region: Region, y: Tensor) -> Tensor:
    """[n, K - 1] float64: dual lower bounds of z_y - z_k."""
    slopes = margin_weights(y, boxes[-1].lower.shape[1])
    row = torch.arange(len(y), device=y.device).repeat_interleave(slopes.shape[1])
    at = len(network.steps) - 1
    return dual_bounds(network, boxes, region, at, slopes.flatten(0, 1), row).lower.view(len(y), -1)


def refined_boxes(network: Network, region: Region, reach: float) -> list[Box]:
    """Boxes around every step, those in front of ReLUs tightened by their own dual bounds."""
    plain = region.is_box

    def refine(boxes: list[Box], step: Step) -> Box:
        at = step.inputs[0]
        seen = any(isinstance(earlier.op, ReLU) for earlier in network.steps[: at + 1])
        return (
            boxes[at + 1]
            if plain and not seen
            else tightened_box(network, boxes, region, at, reach)
        )

    return propagate_boxes(network, region.box, refine)


def tightened_box(network: Network, boxes: list[Box], region: Region, at: int, reach: float) -> Box:
    """The box of one step, met with the dual bounds of its units whose sign is open."""
    lower, upper = (side.flatten(1).clone() for side in boxes[at + 1][:2])
    open_ = (lower < 0) & (upper > 0)
    open_ &= open_.double().mean(1, keepdim=True) <= reach
    row, unit = open_.nonzero(as_tuple=True)
    shape = boxes[at + 1].lower.shape[1:]
    side_by_side = units_per_pass(boxes)
    for first in range(0, len(row), side_by_side):
        here = row[first : first + side_by_side], unit[first : first + side_by_side]
        slope = F.one_hot(here[1], lower.shape[1]).to(lower.dtype).view(-1, *shape)
        found = dual_bounds(network, boxes, region, at, slope, here[0])
        lower[here] = torch.maximum(lower[here], found.lower)
        upper[here] = torch.minimum(upper[here], found.upper)
    return Box(lower.view(-1, *shape), upper.view(-1, *shape), boxes[at + 1].rounding)


def units_per_pass(boxes: list[Box]) -> int:
    """How many backward passes fit side by side."""
    return max(1, MAX_VALUES // max(box.lower[0].numel() for box in boxes))


def dual_bounds(
    network: Network, boxes: list[Box], region: Region, at: int, slope: Tensor, row: Tensor
) -> Box:
    """Bounds [m] of <slope, step `at`> over the regions of rows [m]; slope is [m, ...].

    Going back, W^T for a layer, and for a ReLU on [l, u] the slope d = u / (u - l) of its triangle:
    d z <= max(z, 0) <= d (z - l) where l < 0 < u; elsewhere d is 1 above and 0 below.
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
    """The weight on a ReLU's input, and what its upper side adds: w d, and -w d l."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    slope = high / (high - low).clamp_min(torch.finfo(high.dtype).tiny)
    weight = weight * slope
    return weight, -weight * low


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Offer the dual bound."""
    yield DualBound()
