"""Stochastic activation pruning: unbiased, the identity with many draws, a misleading gradient."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from plugins.defenses.pruning import ActivationPruning, survival_probability, with_pruning

pytestmark = pytest.mark.row("D30")


def hidden(n: int = 4) -> Tensor:
    """Half of the values are zero, as after a ReLU."""
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)).relu()


def test_survival_is_the_probability_of_being_drawn_with_replacement() -> None:
    h = hidden(1)
    draws = round(0.5 * h.numel())
    p = (h / h.sum()).flatten()
    generator = torch.Generator().manual_seed(1)
    trials = p.multinomial(20000 * draws, replacement=True, generator=generator).view(20000, -1)
    seen = torch.zeros(20000, h.numel()).scatter(1, trials, 1.0).mean(0)
    assert (survival_probability(h, 0.5).flatten() - seen).abs().max() < 4 * 0.5 / 20000**0.5


def test_pruning_is_unbiased() -> None:
    h = hidden(1).expand(20000, -1, -1, -1)
    torch.manual_seed(0)
    drawn = ActivationPruning(0.5)(h)
    error = drawn.std(0) / len(h) ** 0.5
    assert ((drawn.mean(0) - h[0]).abs() <= 5 * error + 1e-6).all()
    assert drawn.std(0).max() > 0.1


def test_surviving_values_are_divided_by_their_probability() -> None:
    h = hidden()
    torch.manual_seed(0)
    drawn = ActivationPruning(0.5)(h)
    alive = drawn > 0
    assert torch.allclose(drawn[alive], (h / survival_probability(h, 0.5))[alive])
    assert (drawn[h == 0] == 0).all()


def test_with_many_draws_it_is_the_identity() -> None:
    h = hidden()
    assert torch.allclose(ActivationPruning(1e4)(h), h)


def test_probabilities_depend_on_the_example_alone() -> None:
    h = hidden()
    assert torch.allclose(survival_probability(h, 0.5)[:1], survival_probability(h[:1], 0.5))
    assert torch.allclose(
        survival_probability(h * torch.tensor([1.0, 2, 3, 4])[:, None, None, None], 0.5),
        survival_probability(h, 0.5),
        atol=1e-6,
    )


@pytest.mark.parametrize("h", [torch.zeros(2, 5), torch.eye(5)[:2]], ids=["none", "one alone"])
def test_outputs_and_gradients_are_finite_where_few_values_are_active(h: Tensor) -> None:
    leaf = h.clone().requires_grad_()
    answer = ActivationPruning(0.5)(leaf)
    (slope,) = torch.autograd.grad(answer.sum(), leaf)
    assert torch.allclose(answer, h, atol=1e-5) and torch.isfinite(slope).all()


def test_its_own_gradient_differs_from_that_of_the_mean() -> None:
    """d E[h'] / dh is 1; at fixed draws a growing value is divided by a growing probability."""
    h = hidden(1).expand(4000, -1, -1, -1).flatten(1).clone().requires_grad_()
    weak = int(h[0].detach().masked_fill(h[0] == 0, torch.inf).argmin())
    torch.manual_seed(0)
    (slope,) = torch.autograd.grad(ActivationPruning(0.1)(h)[:, weak].sum(), h)
    assert slope[:, weak].mean() < 0.2


def test_every_relu_is_followed_by_pruning() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    parts = list(with_pruning(network, 0.5))
    after = [type(b) for a, b in pairwise(parts) if isinstance(a, nn.ReLU)]
    assert after == [ActivationPruning, ActivationPruning]
    assert [part for part in parts if not isinstance(part, ActivationPruning)] == list(network)
