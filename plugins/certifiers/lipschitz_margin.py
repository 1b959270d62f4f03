"""Lipschitz margins: no answer moves faster than the product of its layers' norms allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Certifier, PerturbationSet, hookimpl
from plugins.certifiers._network_graph import (
    Affine,
    Box,
    MaxPool,
    Network,
    Step,
    inputs_of,
    propagate_boxes,
    read_network,
)
from plugins.certifiers.interval import (
    certify_in_batches,
    interval_margins,
    last_layer_margins,
    perturbation_box,
    why_unsupported,
)


class LipschitzMargin:
    """Certifies x when every gap z_y - z_k is larger than it can shrink within the radius.

    With h what the last layer W takes, |gap(x') - gap(x)| <= ||w_y - w_k||_q ||h(x') - h(x)||_p,
    and h is Lipschitz with the product of the other layers' norms (their sums, along both ways of
    a residual block). At least margin / (sqrt(2) L), the usual radius; exact for one layer.
    """

    name = "lipschitz-margin"
    exact = False
    cite = "arXiv:1802.04034"
    summary = "Margin over the product of the layers' norms."

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """A sentence for unknown norms, maxima over windows, and no linear layer at the end."""
        if ball.name not in ORDERS:
            return f"the norm is {ball.name}; {self.name} knows {', '.join(ORDERS)}."
        sentence = why_unsupported(self.name, module)
        if sentence:
            return sentence
        network = read_network(module)
        if network.count(MaxPool):
            return f"the model takes maxima over windows; {self.name} has no norm for them."
        last = network.steps[-1].op if network.steps else None
        linear = isinstance(last, Affine)
        return "" if linear else f"the model ends in no linear layer; {self.name} needs one."

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """[n] bool: right on every image of ball and box."""
        return certify_in_batches(self._part, module, x, y, ball)

    def _part(self, network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        here = propagate_boxes(network, Box(x.double(), x.double()))
        boxes = propagate_boxes(network, perturbation_box(x, ball))
        reach = ball.radius + ball.tolerance(x[0].numel())
        gap = interval_margins(network, here, y)
        return (gap > margin_change(network, boxes, y, reach, ORDERS[ball.name])).all(1)


ORDERS = {"Linf": math.inf, "L2": 2.0, "L1": 1.0}


def margin_change(
    network: Network, boxes: list[Box], y: Tensor, reach: float, order: float
) -> Tensor:
    """[n, K - 1]: by how much each gap may shrink within reach, float32's rounding included."""
    last = last_layer_margins(network, boxes, y)
    steepness: Tensor = torch.linalg.vector_norm(last.weight, dual_order(order), dim=2)
    return steepness * feature_change(network, boxes, reach, order)[:, None] + last.spare


def feature_change(network: Network, boxes: list[Box], reach: float, order: float) -> Tensor:
    """[n]: how far what the last layer takes may move, in the norm of that order."""
    gain = lipschitz_constants(network, boxes, order)
    moved = boxes[0].lower.new_full((len(boxes[0].lower),), gain[-1] * reach)
    for place, box in enumerate(boxes[1:-1]):
        if box.rounding is not None:
            stray = torch.linalg.vector_norm(box.rounding.flatten(1), order, dim=1)
            moved += gain.get(place, 0.0) * stray
    return moved


def lipschitz_constants(network: Network, boxes: list[Box], order: float) -> dict[int, float]:
    """Lipschitz constants from each step's value (-1: the images) to what the last layer takes."""
    (end,) = network.steps[-1].inputs
    gain = {end: 1.0}
    for place in range(end, -1, -1):
        if place in gain:
            step = network.steps[place]
            through = gain[place] * operator_norm(step, boxes, order)
            for source in step.inputs:
                gain[source] = gain.get(source, 0.0) + through
    return gain


def operator_norm(step: Step, boxes: list[Box], order: float) -> float:
    """The operator norm of one step, or a bound from above; ReLUs and sums have 1 on each way."""
    if not isinstance(step.op, Affine):
        return 1.0
    (box,) = inputs_of(step, boxes)
    return NORMS[order](step.op, torch.ones_like(box.lower[:1]))


def norm_inf(op: Affine, ones: Tensor) -> float:
    """||A||_inf = max_i sum_j |a_ij|."""
    return float(op.apply_absolute(ones).amax())


def norm_1(op: Affine, ones: Tensor) -> float:
    """||A||_1 = max_j sum_i |a_ij|: the slope of the sum of |A| h."""
    leaf = ones.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(op.apply_absolute(leaf).sum(), leaf)
    return float(slope.amax())


def norm_2(op: Affine, ones: Tensor) -> float:
    """||A||_2 <= sqrt(||A||_1 ||A||_inf), or what the layer itself knows."""
    bound = math.sqrt(norm_inf(op, ones) * norm_1(op, ones))
    return bound if op.spectral is None else min(bound, op.spectral(ones.shape[1:]))


NORMS: dict[float, Callable[[Affine, Tensor], float]] = {
    1.0: norm_1,
    2.0: norm_2,
    math.inf: norm_inf,
}
"""Order p -> the norm of A from p to p."""


def dual_order(order: float) -> float:
    """1 / p + 1 / q = 1."""
    return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[order]


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Offer the margin over the product of norms."""
    yield LipschitzMargin()
