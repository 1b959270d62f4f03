"""The gradient at a point of a parametric set is that of its image, pulled back."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.threats.access import Budget
from bench.threats.norms import PerturbationSet
from bench.threats.threat_model import Goal
from tests.threats.test_parametric import ROTATION, Brightness, random_images


def linear_loss(weight: Tensor) -> torch.nn.Module:
    """A model with two logits: <weight, image> and 0."""

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Logits [n, 2]."""
            value = (x * weight).flatten(1).sum(1)
            return torch.stack([value, 0 * value], 1)

    return Model()


def problem_in(ball: PerturbationSet, x: Tensor, model: torch.nn.Module) -> BatchProblem:
    """A problem over images x with label 1."""
    access, y = ModelAccess(model), torch.ones(len(x), dtype=torch.int64)
    return BatchProblem(
        access, ball, Goal(), x, y, target=-y, clean_logits=access.logits(x),
        example=torch.arange(len(x)), seed=0, name="test", budget=Budget(),
    )  # fmt: skip


def test_the_gradient_at_a_point_is_that_of_the_image_pulled_back() -> None:
    x, weight = 0.3 + 0.4 * random_images((1, 8, 8)), torch.randn(1, 8, 8)
    problem = problem_in(Brightness(), x, linear_loss(weight))
    found = problem.gradient(torch.full((4, 1), 0.5), lambda logits, label: logits[:, 0])
    assert torch.allclose(found.gradient, (0.2 * weight.sum()).expand(4, 1), rtol=1e-4)
    jacobian = problem.jacobian(torch.zeros(4, 1), torch.tensor([[0], [1], [0], [1]]))
    expected = torch.tensor([1.0, 0, 1, 0])[:, None, None] * 0.2 * weight.sum()
    assert jacobian.rows.shape == (4, 1, 1)
    assert torch.allclose(jacobian.rows, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_rotation_agrees_with_finite_differences() -> None:
    x = torch.nn.functional.avg_pool2d(random_images((1, 20, 20)), 3, 1, 1)
    problem = problem_in(ROTATION, x, linear_loss(torch.randn(1, 20, 20)))
    point = torch.tensor([[0.37, 0.211, -0.173]]).expand(4, 3).contiguous()
    found = problem.gradient(point, lambda logits, label: logits[:, 0]).gradient
    for column in range(3):
        step = torch.zeros(3)
        step[column] = 1e-3
        after, before = (problem.logits(point + sign * step)[:, 0] for sign in (1, -1))
        assert torch.allclose(found[:, column], (after - before) / 2e-3, rtol=0.05, atol=0.02)


def test_a_clamp_does_not_stop_the_gradient() -> None:
    x = torch.ones(2, 1, 4, 4)
    problem = problem_in(Brightness(), x, linear_loss(torch.ones(1, 4, 4)))
    found = problem.gradient(torch.ones(2, 1), lambda logits, label: logits[:, 0])
    assert torch.allclose(found.gradient, torch.full((2, 1), 3.2))
