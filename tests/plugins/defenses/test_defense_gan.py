"""Projection onto a generator: least squares where it is affine, and better with more searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.plugin import TrainingBatch
from plugins.defenses.defense_gan import (
    LATENT,
    AffineGenerator,
    Autoencoder,
    Projection,
    autoencoder_loss,
    fit_principal_components,
    squared_error,
)
from tests.fixtures.known_models import digits, gaussian

pytestmark = pytest.mark.row("F07")


def fitted() -> tuple[AffineGenerator, Tensor]:
    x, y = digits(200)
    generator = AffineGenerator(64, LATENT)
    fit_principal_components(TrainingBatch(generator, x, y, x))
    return generator, x


def test_principal_components_are_orthonormal_and_explain_the_most() -> None:
    generator, x = fitted()
    basis = generator.basis
    assert torch.allclose(basis.T @ basis, torch.eye(LATENT), atol=1e-5)
    other = AffineGenerator(64, LATENT)
    other.mean.copy_(generator.mean)
    other.basis.copy_(torch.linalg.qr(gaussian(64, LATENT)).Q)
    lost, more = (squared_error(g(x).flatten(1), x.flatten(1)).sum() for g in (generator, other))
    centred = (x.flatten(1) - generator.mean).double()
    least = centred.square().sum() - torch.linalg.svdvals(centred)[:LATENT].square().sum()
    assert float(lost) == pytest.approx(float(least), rel=1e-4)
    assert lost < more


def test_the_affine_projection_is_numpy_s_least_squares() -> None:
    generator, x = fitted()
    goal = (x.flatten(1) - generator.mean).double().numpy()
    z = np.linalg.lstsq(generator.basis.double().numpy(), goal.T, rcond=None)[0].T
    expected = generator.mean + torch.from_numpy(z).float() @ generator.basis.T
    assert torch.allclose(generator(x).flatten(1), expected, atol=1e-5)


def test_images_of_the_generator_are_fixed_points() -> None:
    generator, x = fitted()
    once = generator(x)
    assert torch.allclose(generator(once), once, atol=1e-5)
    assert not torch.allclose(once, x, atol=0.1)


def plane() -> nn.Linear:
    """An affine generator whose columns are not orthonormal."""
    decoder = nn.Linear(4, 64)
    with torch.no_grad():
        decoder.weight.copy_(0.3 * gaussian(64, 4))
        decoder.bias.copy_(gaussian(64, seed=1))
    return decoder.requires_grad_(False)


def searching(
    decoder: nn.Module, steps: int, restarts: int, *, unrolled: bool = False
) -> Projection:
    found = Projection(decoder, 4, unrolled=unrolled)
    found.steps, found.restarts = steps, restarts
    return found


def test_the_search_of_an_affine_generator_ends_at_least_squares() -> None:
    decoder = plane()
    x = gaussian(16, 1, 8, 8, seed=2)
    goal = (x.flatten(1) - decoder.bias).double().numpy().T
    z = np.linalg.lstsq(decoder.weight.double().numpy(), goal, rcond=None)[0].T
    expected = decoder(torch.from_numpy(z).float())
    torch.manual_seed(0)
    assert torch.allclose(searching(decoder, 300, 1)(x).flatten(1), expected, atol=1e-3)


def crooked() -> nn.Module:
    """A generator with more than one local minimum."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        parts = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 64), nn.Sigmoid())
    return parts.requires_grad_(False)


def test_the_error_falls_with_steps_and_with_restarts() -> None:
    x, _ = digits(64)

    def lost(steps: int, restarts: int) -> float:
        torch.manual_seed(0)
        made = searching(crooked(), steps, restarts)(x)
        return float(squared_error(made.flatten(1), x.flatten(1)).mean())

    by_steps = [lost(steps, 1) for steps in (0, 5, 20, 80)]
    by_restarts = [lost(0, restarts) for restarts in (1, 4, 16)]
    assert by_steps == sorted(by_steps, reverse=True) and by_steps[3] < by_steps[0]
    assert by_restarts == sorted(by_restarts, reverse=True) and by_restarts[2] < by_restarts[0]


def test_each_image_keeps_its_own_best_search() -> None:
    x, _ = digits(32)
    model = searching(crooked(), 3, 4)
    torch.manual_seed(0)
    made = model(x).flatten(1)
    torch.manual_seed(0)
    tries = torch.stack([model.search(x.flatten(1)).detach() for _ in range(4)])
    least = squared_error(tries, x.flatten(1)).amin(0)
    assert torch.equal(squared_error(made, x.flatten(1)), least)


def test_the_unrolled_search_has_the_same_output_and_its_true_gradient() -> None:
    decoder = plane().double()
    x = gaussian(4, 1, 8, 8, seed=2).double()

    def projected(images: Tensor, *, unrolled: bool) -> Tensor:
        torch.manual_seed(0)
        model = searching(decoder, 8, 2, unrolled=unrolled)
        found: Tensor = model(images)
        return found

    with torch.random.fork_rng([]):
        torch.set_default_dtype(torch.float64)
        try:
            leaf = x.clone().requires_grad_()
            answer = projected(leaf, unrolled=True)
            assert torch.equal(answer, projected(x, unrolled=False))
            assert not projected(leaf, unrolled=False).requires_grad
            weight, v = torch.randn_like(x), torch.randn_like(x)
            (slope,) = torch.autograd.grad((answer * weight).sum(), leaf)
            ahead, behind = (projected(x + h * v, unrolled=False) for h in (1e-5, -1e-5))
        finally:
            torch.set_default_dtype(torch.float32)
    seen = ((ahead - behind) * weight).sum() / 2e-5
    assert float((slope * v).sum()) == pytest.approx(float(seen), rel=1e-5)


def test_the_loss_is_that_of_classifier_and_autoencoder() -> None:
    x, y = digits(8)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Autoencoder((1, 8, 8), 10)
        middle, log_variance = model.encoder(x).chunk(2, 1)
        torch.manual_seed(1)
        z = middle + torch.randn_like(middle) * log_variance.div(2).exp()
        torch.manual_seed(1)
        found = autoencoder_loss(TrainingBatch(model, x, y, x))
    q = torch.distributions.Normal(middle, log_variance.div(2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(middle), torch.ones_like(middle))
    apart = torch.distributions.kl_divergence(q, prior).sum(1)
    made = (model.decoder(z) - x.flatten(1)).square().sum(1)
    known = -model(x).log_softmax(1)[torch.arange(8), y]
    assert torch.allclose(found, known + made + 0.05 * apart, atol=1e-5)
