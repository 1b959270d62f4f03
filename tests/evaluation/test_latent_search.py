"""A search among the outputs of a decoder: closed form, and a perfect projection that is broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.evaluation.latent_search import search_latent
from tests.fixtures.known_models import digits, small_cnn

RATE = 0.01


class LinearDecoder(nn.Module):
    """h(z) = z A + c, as images [n, 1, 8, 8], with the exact projection onto its range."""

    def __init__(self, basis: Tensor, centre: Tensor) -> None:
        super().__init__()
        self.basis, self.centre = basis, centre

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = (z @ self.basis + self.centre).view(-1, 1, 8, 8)
        return images

    def encode(self, images: Tensor) -> Tensor:
        """The latent vectors [n, d] of the nearest outputs to images [n, 1, 8, 8]."""
        vectors: Tensor = (images.flatten(1) - self.centre) @ torch.linalg.pinv(self.basis)
        return vectors


class Linear(nn.Module):
    """Two classes: logits 0 and <w, x>."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)


def toy() -> tuple[LinearDecoder, Linear, Tensor]:
    """A decoder of 5 dimensions, a classifier, and 20 latent vectors."""
    generator = torch.Generator().manual_seed(0)
    basis, weight = (torch.randn(5, 64, generator=generator), torch.randn(64, generator=generator))
    centre = torch.randn(64, generator=generator)
    return LinearDecoder(basis, centre), Linear(weight), torch.randn(20, 5, generator=generator)


def main_components(count: int) -> LinearDecoder:
    """The decoder of the digits' main components."""
    flat = digits(1000)[0].flatten(1)
    centre = flat.mean(0)
    _, _, directions = torch.linalg.svd(flat - centre, full_matrices=False)
    return LinearDecoder(directions[:count], centre)


@pytest.mark.row("A16")
def test_of_a_linear_decoder_the_nearest_vector_is_that_of_the_closed_form() -> None:
    decoder, classifier, z = toy()
    y = classifier(decoder(z)).argmax(1)
    found = search_latent(classifier, decoder, z, y, steps=1500, rate=RATE)
    assert (classifier(decoder(found)).argmax(1) != y).all()
    slope = decoder.basis @ classifier.weight
    score = decoder(z).flatten(1) @ classifier.weight
    closed = z - (score / slope.square().sum())[:, None] * slope
    least = (score.abs() / slope.norm()).tolist()
    for distance, bound in zip((found - z).norm(dim=1).tolist(), least, strict=True):
        assert bound - 1e-4 <= distance <= bound + RATE + 1e-4
    assert (found - closed).norm(dim=1).max() <= RATE + 1e-3


@pytest.mark.row("A16")
def test_a_radius_below_the_closed_form_finds_nothing_and_is_kept() -> None:
    decoder, classifier, z = toy()
    y = classifier(decoder(z)).argmax(1)
    slope = decoder.basis @ classifier.weight
    least = (decoder(z).flatten(1) @ classifier.weight).abs() / slope.norm()
    far = least > 0.2
    assert far.sum() > 5
    found = search_latent(classifier, decoder, z, y, steps=200, rate=RATE, radius=0.2)
    assert ((found - z).norm(dim=1) <= 0.2 + 1e-5).all()
    assert (classifier(decoder(found)).argmax(1) == y)[far].all()


@pytest.mark.row("A16")
def test_a_defense_that_projects_perfectly_keeps_no_image() -> None:
    """Accuracy of the classifier behind the projection goes to 0, and g(h(z)) is h(z)."""
    decoder, classifier = main_components(20), small_cnn()
    x, y = digits(200)
    z = decoder.encode(x)
    right = classifier(decoder(z)).argmax(1) == y
    assert right.float().mean() > 0.7
    found = decoder(search_latent(classifier, decoder, z, y, steps=200))
    assert torch.allclose(decoder(decoder.encode(found)), found, atol=1e-4)
    assert (classifier(decoder(decoder.encode(found))).argmax(1) != y).float().mean() > 0.99


@pytest.mark.row("A16")
def test_a_penalty_keeps_images_nearer() -> None:
    decoder, classifier = main_components(20), small_cnn()
    x, y = digits(64)
    z = decoder.encode(x)
    moved = []
    for penalty in (0.0, 1e4):
        found = search_latent(classifier, decoder, z, y, steps=200, penalty=penalty)
        moved.append(float((decoder(found) - decoder(z)).flatten(1).norm(dim=1).mean()))
    assert moved[1] < 0.3 * moved[0], moved
