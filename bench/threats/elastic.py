"""Elastic deformation: a coarse field of displacements (Kanbak et al. 2018, arXiv:1711.09115)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.threats.parametric import ParametricSet, clamp_straight_through
from bench.threats.warps import bilinear


@dataclass(frozen=True)
class ElasticField(ParametricSet):
    """Every pixel moves by up to `pixels`; the field is bilinear between `nodes` x `nodes` nodes.

    A point is [2, nodes, nodes]: how far each node moves down and to the right. Black outside.
    """

    pixels: float = 1.0
    nodes: int = 3

    name = "elastic-field"
    limits: ClassVar = {"pixels": (0, 1000), "nodes": (1, 64)}

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Two displacements for each node."""
        return (2, self.nodes, self.nodes)

    def apply(self, adv: Tensor, x: Tensor) -> Tensor:
        """The images [n, C, H, W] of points [n, 2, nodes, nodes]."""
        height, width = x.shape[2:]
        down, right = self._field(adv.double() * self.pixels, height, width).unbind(1)
        rows = torch.arange(height, dtype=torch.float64, device=x.device)[:, None]
        columns = torch.arange(width, dtype=torch.float64, device=x.device)[None, :]
        return clamp_straight_through(bilinear(x, rows - down, columns - right))

    def _field(self, adv: Tensor, height: int, width: int) -> Tensor:
        """The displacement [n, 2, H, W] of each pixel, as a sum over nodes in a fixed order."""
        vertical, horizontal = (hat_weights(self.nodes, size).to(adv) for size in (height, width))
        field = adv.new_zeros(len(adv), 2, height, width)
        for row in range(self.nodes):
            for column in range(self.nodes):
                weight = vertical[row][:, None] * horizontal[column][None, :]
                field = field + adv[:, :, row, column, None, None] * weight
        return field


def hat_weights(nodes: int, size: int) -> Tensor:
    """The weight [nodes, size] of each node at each pixel: linear between nodes, summing to 1.

    >>> hat_weights(2, 3).tolist()
    [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]
    """
    if nodes == 1:
        return torch.ones(1, size, dtype=torch.float64)
    place = torch.arange(size, dtype=torch.float64) * (nodes - 1) / max(size - 1, 1)
    node = torch.arange(nodes, dtype=torch.float64)[:, None]
    return (1 - (place - node).abs()).clamp_min(0)
