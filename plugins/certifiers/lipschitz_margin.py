"""Lipschitz margin: certifies by the product of the layers' operator norms."""

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
    """Certifies x where every margin z_y - z_k exceeds its largest decrease within the radius.

    With h the input of the last layer W, |margin(x') - margin(x)| <= ||w_y - w_k||_q ||h(x') -
    h(x)||_p, and the Lipschitz constant of h is the product of the other layers' norms (their sum
    over the two branches of a residual block). The certified radius is at least margin / (sqrt(2)
    L) (Tsuzuku et al. 2018, arXiv:1802.04034), and exact for one layer.
    """

    name = "lipschitz-margin"
    exact = False
    cite = "arXiv:1802.04034"
    summary = "Margin over the product of the layers' norms."

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why it cannot certify: another norm, max pooling, or a last layer that is not linear."""
        if ball.name not in ORDERS:
            return f"the norm is {ball.name}; {self.name} takes {', '.join(ORDERS)}."
        sentence = why_unsupported(self.name, module)
        if sentence:
            return sentence
        network = read_network(module)
        if network.count(MaxPool):
            return f"the model has max pooling; {self.name} has no operator norm for it."
        last = network.steps[-1].op if network.steps else None
        if isinstance(last, Affine):
            return ""
        return f"the model's last layer is not linear; {self.name} needs one that is."

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds on every image of ball and box, [n] bool."""
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
    """The largest decrease of each margin within reach, float32 rounding included: [n, K - 1].

    `y` [n] are the labels.
    """
    last = last_layer_margins(network, boxes, y)
    weight_norm: Tensor = torch.linalg.vector_norm(last.weight, dual_order(order), dim=2)
    return weight_norm * feature_change(network, boxes, reach, order)[:, None] + last.spare


def feature_change(network: Network, boxes: list[Box], reach: float, order: float) -> Tensor:
    """The largest change [n] of the last layer's input, in the norm of that order."""
    gain = lipschitz_constants(network, boxes, order)
    moved = boxes[0].lower.new_full((len(boxes[0].lower),), gain[-1] * reach)
    for place, box in enumerate(boxes[1:-1]):
        if box.rounding is not None:
            stray = torch.linalg.vector_norm(box.rounding.flatten(1), order, dim=1)
            moved += gain.get(place, 0.0) * stray
    return moved


def lipschitz_constants(network: Network, boxes: list[Box], order: float) -> dict[int, float]:
    """Lipschitz constants from each step's value (-1: the images) to the last layer's input."""
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
    """The operator norm of one step or a bound of it; 1 for a ReLU and each branch of a sum."""
    if not isinstance(step.op, Affine):
        return 1.0
    (box,) = inputs_of(step, boxes)
    return NORMS[order](step.op, torch.ones_like(box.lower[:1]))


def norm_inf(op: Affine, ones: Tensor) -> float:
    """The norm ||A||_inf = max_i sum_j |a_ij|; `ones` [1, ...] has the shape of one input."""
    return float(op.apply_absolute(ones).amax())


def norm_1(op: Affine, ones: Tensor) -> float:
    """The norm ||A||_1 = max_j sum_i |a_ij|: the gradient of the sum of |A| h.

    `ones` [1, ...] has the shape of one input.
    """
    leaf = ones.clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(op.apply_absolute(leaf).sum(), leaf)
    return float(slope.amax())


def norm_2(op: Affine, ones: Tensor) -> float:
    """A bound of ||A||_2: sqrt(||A||_1 ||A||_inf) or the layer's own; `ones` is [1, ...]."""
    bound = math.sqrt(norm_inf(op, ones) * norm_1(op, ones))
    return bound if op.spectral is None else min(bound, op.spectral(ones.shape[1:]))


NORMS: dict[float, Callable[[Affine, Tensor], float]] = {
    1.0: norm_1,
    2.0: norm_2,
    math.inf: norm_inf,
}
"""Order p -> the operator norm of A from p to p."""


def dual_order(order: float) -> float:
    """The q with 1 / p + 1 / q = 1."""
    return {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[order]


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register the Lipschitz margin."""
    yield LipschitzMargin()
