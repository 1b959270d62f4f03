"""Manitest: how far an image moves on the manifold of its transforms before its class changes.

Fawzi and Frossard 2015 (arXiv:1507.06535): geodesic lengths on a grid of two parameters, with the
metric that image derivatives give.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.threats.parametric import ParametricSet

SHARES = 9  # places on the edge between two neighbours from which a length is continued
AROUND = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""The neighbours of a node of the grid, in order around it."""


def geodesic_lengths(metric: Tensor, step: float) -> Tensor:
    """Lengths [n, k, k] of shortest paths from the middle of grids with the metric [n, k, k, 2, 2].

    k is odd and `step` the distance of nodes in the parameters. The length at a node continues the
    shortest one on the edge between two neighbours, interpolated, in the metric at the node; passes
    over all nodes are repeated until none gets shorter.
    """
    n, k = metric.shape[:2]
    length = torch.full((n, k, k), torch.inf, dtype=metric.dtype)
    length[:, k // 2, k // 2] = 0
    ways = list(_ways(metric, step))
    while True:
        shorter = length
        padded = nn.functional.pad(length, (1, 1, 1, 1), value=torch.inf)
        for share, (first, second), own in ways:
            known = [_moved(padded, place, k) for place in (first, second)]
            shorter = torch.minimum(shorter, _between(share, *known) + own)
        if torch.equal(shorter, length):
            return length
        length = shorter


def manitest_scores(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, ball: ParametricSet,
    *, nodes: int = 15, parameters: tuple[int, int] = (0, 1),
) -> Tensor:  # fmt: skip
    """The length [n] of the shortest path to a node with another class than y [n], by ||x||_2.

    Two parameters of the set move the images x [n, C, H, W] on a grid of `nodes` x `nodes`, an odd
    number, from -radius to radius. 0 where the image itself is wrong; infinite where no node is.
    """
    side = torch.linspace(-ball.radius, ball.radius, nodes, dtype=torch.float64)
    step = float(side[1] - side[0])
    images = torch.stack(
        [torch.stack([_image(ball, x, parameters, (a, b)) for b in side], 1) for a in side], 1
    )
    with torch.no_grad():
        label = model(images.flatten(0, 2)).argmax(1).view(images.shape[:3])
    flat = images.double().flatten(3)
    slopes = torch.gradient(flat, spacing=(step, step), dim=(1, 2))
    metric = torch.stack([torch.stack([(a * b).sum(-1) for b in slopes], -1) for a in slopes], -2)
    length = geodesic_lengths(metric, step)
    wrong = label != y[:, None, None]
    found = torch.where(wrong, length, torch.inf).flatten(1).amin(1)
    score: Tensor = found / x.double().flatten(1).norm(dim=1)
    return score


def _image(
    ball: ParametricSet, x: Tensor, parameters: tuple[int, int], values: tuple[Tensor, Tensor]
) -> Tensor:
    """The images [n, C, H, W] at two values of the parameters of a set."""
    point = ball.start(x).flatten(1)
    for parameter, value in zip(parameters, values, strict=True):
        point[:, parameter] = value
    return ball.apply(point.view_as(ball.start(x)), x)


def _ways(
    metric: Tensor, step: float
) -> list[tuple[float, tuple[tuple[int, int], tuple[int, int]], Tensor]]:
    """(share, neighbours, length [n, k, k]) of every way from an edge between neighbours."""
    found = []
    for place, first in enumerate(AROUND):
        second = AROUND[(place + 1) % len(AROUND)]
        for share in torch.linspace(0, 1, SHARES).tolist():
            away = torch.tensor(
                [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)],
                dtype=metric.dtype,
            )
            square = (metric * away[:, None] * away[None, :]).sum((-2, -1))
            found.append((share, (first, second), step * square.clamp_min(0).sqrt()))
    return found


def _moved(padded: Tensor, place: tuple[int, int], k: int) -> Tensor:
    """The values [n, k, k] of the neighbour at a place, of values with a margin of one node."""
    return padded[:, 1 + place[0] : 1 + place[0] + k, 1 + place[1] : 1 + place[1] + k]


def _between(share: float, first: Tensor, second: Tensor) -> Tensor:
    """The values between two neighbours; an infinite one does not count at its own end."""
    if share in (0.0, 1.0):
        return first if share == 1.0 else second
    return share * first + (1 - share) * second
