"""The set of elastic deformations."""

from __future__ import annotations

import pytest
import torch

from bench.threats.elastic import ElasticField, hat_weights
from bench.threats.warps import rotate_and_shift
from tests.threats.test_parametric import random_images


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_the_weights_of_the_nodes_sum_to_one_and_are_one_at_the_node(nodes: int) -> None:
    weights = hat_weights(nodes, 13)
    assert torch.allclose(weights.sum(0), torch.ones(13, dtype=torch.float64))
    assert weights.min() >= 0 and weights[0, 0] == 1 and weights[-1, -1] == 1


def test_equal_displacements_of_all_nodes_are_a_shift() -> None:
    x = random_images((2, 8, 8))
    point = torch.zeros(4, 2, 3, 3)
    point[:, 0], point[:, 1] = 0.5, -1.0
    moved = ElasticField(pixels=2.0).apply(point, x)
    expected = rotate_and_shift(x, torch.zeros(4), torch.tensor([[-2.0, 1.0]]).expand(4, 2))
    assert torch.allclose(moved, expected)


def test_one_node_moves_its_surroundings_alone() -> None:
    x = random_images((1, 9, 9))
    point = torch.zeros(4, 2, 3, 3)
    point[:, :, 0, 0] = 1.0
    moved = ElasticField().apply(point, x)
    assert torch.equal(moved[:, :, 4:], x[:, :, 4:]) and torch.equal(moved[..., 4:], x[..., 4:])
    assert not torch.equal(moved[:, :, :4, :4], x[:, :, :4, :4])
