"""Defense-GAN: replaces the image by the nearest one that a generator can produce.

Samangouei et al. 2018, arXiv:1805.06605. The generators here are small: a learned decoder, searched
by gradient descent as published, and an affine one, whose nearest image is a least-squares
solution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Loader, Randomness, Recipe, TrainingBatch, cross_entropy, hookimpl
from plugins.defenses._cnn import cnn
from plugins.defenses._preprocessing import PreprocessedModel

LATENT = 8
HIDDEN = 128
STEPS, RESTARTS = 20, 2
RATE, MOMENTUM = 0.1, 0.7
BETA = 0.05  # weight of the divergence relative to the squared error of all pixels


class Projection(nn.Module):
    """The generator's nearest image G(z*), the best of several searches from random starts.

    z* minimises ||G(z) - x||^2.
    """

    def __init__(self, decoder: nn.Module, latent: int, *, unrolled: bool = False) -> None:
        """With `unrolled` the search keeps its graph for gradients; its outputs are the same."""
        super().__init__()
        self.decoder, self.latent, self.unrolled = decoder, latent, unrolled
        self.steps, self.restarts = STEPS, RESTARTS

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] to the nearest images of the decoder that the search finds."""
        goal = images.flatten(1)
        with torch.enable_grad():
            found = torch.stack([self.search(goal) for _ in range(self.restarts)])
        best = squared_error(found, goal).argmin(0)[None, :, None].expand(1, *goal.shape)
        nearest: Tensor = found.gather(0, best)[0].view_as(images)
        return nearest if self.unrolled else nearest.detach()

    def search(self, goal: Tensor) -> Tensor:
        """The image G(z) [n, pixels] after gradient descent with momentum towards `goal`.

        z starts from N(0, 1); `goal` is [n, pixels].
        """
        z = torch.randn(len(goal), self.latent, device=goal.device, requires_grad=True)
        velocity = torch.zeros_like(z)
        for _ in range(self.steps):
            total = squared_error(self.decoder(z), goal).sum()
            (gradient,) = torch.autograd.grad(total, z, create_graph=self.unrolled)
            velocity = MOMENTUM * velocity - RATE * gradient
            z = z + velocity
        made: Tensor = self.decoder(z)
        return made


def squared_error(made: Tensor, goal: Tensor) -> Tensor:
    """The squared distance ||G(z) - x||^2 [..., n] of G(z) [..., n, pixels] and x [n, pixels]."""
    return (made - goal).square().sum(-1)


class AffineGenerator(nn.Module):
    """The generator G(z) = mean + B z with orthonormal columns of B, searched exactly."""

    mean: Tensor
    basis: Tensor

    def __init__(self, pixels: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, latent))

    def forward(self, images: Tensor) -> Tensor:
        """The nearest images G(z*) to images [n, C, H, W], by least squares z* = B^T (x - mean)."""
        z = (images.flatten(1) - self.mean) @ self.basis
        made: Tensor = self.mean + z @ self.basis.T
        return made.view_as(images)


def fit_principal_components(batch: TrainingBatch) -> None:
    """Fit an affine generator: the mean image and the directions of largest variance."""
    generator = cast(AffineGenerator, batch.model)
    pixels = batch.x.flatten(1).double()
    generator.mean.copy_(pixels.mean(0))
    directions = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False).Vh
    generator.basis.copy_(directions[: generator.basis.shape[1]].T)


class Autoencoder(nn.Module):
    """A classifier, and a decoder trained together with an encoder."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.classifier = cnn(shape, classes)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels), nn.Sigmoid()
        )

    def forward(self, images: Tensor) -> Tensor:
        """The classifier's logits [n, K] of the images [n, C, H, W] themselves."""
        logits: Tensor = self.classifier(images)
        return logits


def autoencoder_loss(batch: TrainingBatch) -> Tensor:
    """Classification and autoencoder loss [n] of one batch.

    -log p(y | x) + ||G(z) - x||^2 + beta KL(q(z | x) || N(0, 1)), with z drawn from q.
    """
    parts = cast(Autoencoder, batch.model)
    middle, log_variance = parts.encoder(batch.x).chunk(2, dim=1)
    z = middle + torch.randn_like(middle) * (log_variance / 2).exp()
    divergence = (middle.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
    loss = cross_entropy(parts(batch.x), batch.y)
    bound: Tensor = squared_error(parts.decoder(z), batch.x.flatten(1)) + BETA * divergence
    return loss + bound


def build(loader: Loader) -> nn.Module:
    """The classifier behind the search."""
    return projected_classifier(loader, unrolled=False)


def bpda(loader: Loader) -> nn.Module:
    """The same model with an unrolled search; the gradient of the identity is worse here."""
    return projected_classifier(loader, unrolled=True)


def projected_classifier(loader: Loader, *, unrolled: bool) -> nn.Module:
    """The trained classifier behind a search of the trained decoder."""
    parts = cast(Autoencoder, loader.trained(Autoencoder(loader.shape, loader.classes)))
    return PreprocessedModel(parts.classifier, Projection(parts.decoder, LATENT, unrolled=unrolled))


def affine_generator(shape: tuple[int, int, int], classes: int) -> AffineGenerator:
    """An affine generator of images of this shape, not fitted yet."""
    return AffineGenerator(shape[0] * shape[1] * shape[2], LATENT)


def build_affine(loader: Loader) -> nn.Module:
    """The undefended network behind the fitted generator."""
    generator = loader.trained(affine_generator(loader.shape, loader.classes))
    return PreprocessedModel(loader.defense("undefended"), generator)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the search of a learned decoder, and the projection onto an affine one."""
    yield Defense(
        name="defense-gan",
        cite="arXiv:1805.06605",
        summary=f"Projects images onto a small decoder by {RESTARTS} searches of {STEPS} steps.",
        recipe=Recipe(
            Autoencoder,
            autoencoder_loss,
            epochs=30,
            rate=2e-3,
            schedule="cosine",
            options={"latent": LATENT, "hidden": HIDDEN, "beta": BETA},
        ),
        build=build,
        bpda=bpda,
        randomness=Randomness(draws=4),
        forwards=1 + RESTARTS * (STEPS + 1),
        quick=False,
    )
    yield Defense(
        name="defense-gan-affine",
        cite="arXiv:1805.06605",
        summary=f"Projects images onto {LATENT} principal components by least squares.",
        recipe=Recipe(
            affine_generator, fit=fit_principal_components, epochs=0, options={"latent": LATENT}
        ),
        build=build_affine,
        quick=False,
    )
