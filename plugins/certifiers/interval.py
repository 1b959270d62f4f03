"""Interval bounds: the box of allowed images is propagated through the network layer by layer.

Gowal et al. 2018, arXiv:1810.12715.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Certifier, PerturbationSet, hookimpl
from plugins.certifiers._network_graph import (
    Affine,
    Box,
    Network,
    UnsupportedModelError,
    inputs_of,
    propagate_boxes,
    read_network,
)

ROWS = 64  # examples bounded at a time


class Intervals:
    """Certifies x where interval bounds keep every other logit below the label's.

    c' = A c + b and r' = |A| r for an affine layer, and monotone layers map the corners. The
    margins z_y - z_k are bounded through the last layer at once, which is exact for one linear
    layer. The ball of any norm is inside the box of its radius, so the box covers all of them.
    """

    name = "intervals"
    exact = False
    cite = "arXiv:1810.12715"
    summary = "Interval bounds, layer by layer (IBP), over ball and box."

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why the module cannot be bounded; empty where it can."""
        return why_unsupported(self.name, module)

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Whether the label of x [n, C, H, W] holds on every image of ball and box, [n] bool."""
        return certify_in_batches(self._part, module, x, y, ball)

    def _part(self, network: Network, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        boxes = propagate_boxes(network, perturbation_box(x, ball))
        return (interval_margins(network, boxes, y) > 0).all(1)


Part = Callable[[Network, Tensor, Tensor, PerturbationSet], Tensor]


def certify_in_batches(
    certify: Part, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet
) -> Tensor:
    """The certificates [n] bool for x [n, C, H, W], some rows at a time.

    False for an example whose logits in the module differ from those of the network that was read.
    """
    network = read_network(module)
    found = []
    for images, label in zip(torch.split(x, ROWS), torch.split(y, ROWS), strict=True):
        found.append(certify(network, images, label, ball) & matches_model(module, network, images))
    return torch.cat(found)


def why_unsupported(name: str, module: nn.Module) -> str:
    """Why the module cannot be read; empty where it can."""
    try:
        read_network(module)
    except UnsupportedModelError as error:
        return f"{error}; {name} reads feed-forward ReLU networks."
    return ""


def perturbation_box(x: Tensor, ball: PerturbationSet) -> Box:
    """The smallest box around every image of ball and box, for x [n, C, H, W].

    It includes the referee's tolerance.
    """
    reach = ball.radius + ball.tolerance(x[0].numel())
    exact = x.double()
    return Box((exact - reach).clamp(0, 1), (exact + reach).clamp(0, 1))


def matches_model(module: nn.Module, network: Network, x: Tensor) -> Tensor:
    """Whether the module's logits equal those of the network read, up to rounding: [n] bool.

    `x` is [n, C, H, W].
    """
    with torch.no_grad():
        logits: Tensor = module(x).double()
    expected = propagate_boxes(network, Box(x.double(), x.double()))[-1]
    return ((expected.lower <= logits) & (logits <= expected.upper)).all(1)


def other_classes(y: Tensor, classes: int) -> Tensor:
    """The classes other than the label y [n]: [n, K - 1]."""
    other = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    return other + (other >= y[:, None])


def margin_weights(y: Tensor, classes: int) -> Tensor:
    """The weights [n, K - 1, K] of the logits in z_y - z_k, for each class k other than y [n]."""
    own = F.one_hot(y, classes)[:, None]
    return (own - F.one_hot(other_classes(y, classes), classes)).double()


class LinearMargins(NamedTuple):
    """The margins z_y - z_k as <weight, h> + constant, +- spare; h is the last layer's input."""

    weight: Tensor
    """[n, K - 1, d]."""
    box: Box
    """Box around h."""
    constant: Tensor
    """[n, K - 1]."""
    spare: Tensor
    """[n, K - 1]: the float32 rounding of the last layer."""


def last_layer_margins(network: Network, boxes: list[Box], y: Tensor) -> LinearMargins:
    """The margins for labels y [n] as linear functions of the last layer's input.

    An affine last layer is applied to the difference of two logits at once.
    """
    slopes = margin_weights(y, boxes[-1].lower.shape[1])
    step = network.steps[-1]
    if not isinstance(step.op, Affine):
        return LinearMargins(slopes, boxes[-1], slopes.new_zeros(()), slopes.new_zeros(()))
    (box,), stray = inputs_of(step, boxes), boxes[-1].rounding
    weight = step.op.apply_transpose(slopes.flatten(0, 1), box.lower.shape[1:])
    return LinearMargins(
        weight.view(*slopes.shape[:2], -1),
        box,
        constant=slopes @ step.op.offset(box.lower[:1])[0],
        spare=slopes.new_zeros(()) if stray is None else (slopes.abs() * stray[:, None]).sum(2),
    )


def interval_margins(network: Network, boxes: list[Box], y: Tensor) -> Tensor:
    """Lower bounds [n, K - 1] float64 of z_y - z_k from the box in front of the last layer."""
    weight, box, constant, spare = last_layer_margins(network, boxes, y)
    low, high = box.lower.flatten(1)[:, None], box.upper.flatten(1)[:, None]
    return (weight.clamp_min(0) * low + weight.clamp_max(0) * high).sum(2) + constant - spare


@hookimpl
def bench_certifiers() -> Iterator[Certifier]:
    """Register interval bounds."""
    yield Intervals()
