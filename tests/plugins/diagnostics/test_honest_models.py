"""No diagnostic accuses an honest model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.plugin import Finding, Subject, straight_through
from plugins.defenses._cnn import cnn
from plugins.defenses.bit_depth import three_bits
from tests.plugins.diagnostics.networks import (
    Before,
    Changed,
    Data,
    diagnostics,
    digits,
    examine_all,
    fit,
    mlp,
    network,
    subject,
    warnings_of,
)


def seeded(module: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return module()


def linear() -> Subject:
    return subject(fit(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), digits()))


def tiny() -> Subject:
    return subject(fit(seeded(lambda: mlp(3)), digits()))


def of_classes(classes: int) -> Data:
    """Noisy prototypes of so many classes, as 8-bit images."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(classes, 1, 8, 8, generator=generator)

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, classes, (n,), generator=generator)
        noise = 0.25 * torch.randn(n, 1, 8, 8, generator=generator)
        return ((prototypes[y] + noise).clamp(0, 1) * 255).round() / 255, y

    return Data(*drawn(256), *drawn(2000))


def with_classes(classes: int) -> Subject:
    data = of_classes(classes)
    return subject(fit(seeded(lambda: mlp(64, classes)), data), data=data)


def flat_margins() -> Subject:
    """Logits in a narrow range: the margin of a confident image is constant."""
    return subject(Changed(lambda logits, images: logits.clamp(-6, 6)))


def large_constant() -> Subject:
    return subject(Changed(lambda logits, images: logits + 1e6))


def larger_constant() -> Subject:
    return subject(Changed(lambda logits, images: logits - 2e6))


def quantised() -> Subject:
    return subject(Before(three_bits), bpda=Before(straight_through(three_bits)))


def two_levels() -> Subject:
    def binary(images: Tensor) -> Tensor:
        return (images > 0.5).float()

    module = fit(seeded(mlp), digits()._replace(train_x=binary(digits().train_x)))
    return subject(Before(binary, module), bpda=Before(straight_through(binary), module))


def noisy_logits() -> Subject:
    return subject(Changed(lambda logits, images: logits + torch.randn_like(logits)), draws=4)


def noisy_images() -> Subject:
    return subject(Before(lambda images: images + 0.1 * torch.randn_like(images)), draws=10)


def dropout_at_test_time() -> Subject:
    return subject(
        Before(lambda images: nn.functional.dropout(images, 0.1, training=True)), draws=20
    )


def random_shift() -> Subject:
    """One random shift for a whole batch, as a random crop."""

    def shifted(images: Tensor) -> Tensor:
        step = int(torch.randint(0, 2, ()))
        return images.roll(step, 3)

    def with_shifts(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return shifted(x)

    return subject(Before(shifted, fit(seeded(mlp), digits(), 200, with_shifts)), draws=10)


def adversarially_trained() -> Subject:
    def attacked(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        moved = x + 0.15 * (2 * torch.rand_like(x) - 1)
        for _ in range(3):
            leaf = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(module(leaf), y), leaf)
            step = moved + 0.08 * gradient.sign()
            moved = torch.minimum(torch.maximum(step, x - 0.15), x + 0.15).clamp(0, 1).detach()
        return moved

    return subject(fit(seeded(lambda: mlp(128)), digits(), 150, attacked))


class Transformer(nn.Module):
    """Eight rows of an image as tokens, one attention block with layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.embed(images[:, 0]) + self.place).mean(1))
        return logits


def transformer() -> Subject:
    return subject(fit(seeded(Transformer), digits(), 80))


def dropout_in_eval() -> Subject:
    return subject(fit(seeded(lambda: mlp(96, 10, nn.Dropout(0.5))), digits()))


def batch_norm() -> Subject:
    return subject(fit(seeded(lambda: mlp(64, 10, nn.BatchNorm1d(64))), digits()))


def overfitted() -> Subject:
    """Wide, trained far beyond zero training error on 200 images."""
    few = digits()._replace(train_x=digits().train_x[:200], train_y=digits().train_y[:200])
    return subject(fit(seeded(lambda: mlp(256)), few, 250), data=digits())


def saturated_units() -> Subject:
    def smooth() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10))

    return subject(fit(seeded(smooth), digits(), 200))


def convolutional() -> Subject:
    return subject(fit(seeded(lambda: cnn((1, 8, 8), 10)), digits(), 40, rate=0.003))


def small_logits() -> Subject:
    return subject(Changed(lambda logits, images: 1e-3 * logits))


def log_probabilities() -> Subject:
    return subject(Changed(lambda logits, images: logits.log_softmax(1)))


def untrained() -> Subject:
    return subject(seeded(mlp))


def one_hot_with_approximation() -> Subject:
    """Hides its gradient, declares an approximation that helps, and recognises nothing."""

    def answers(logits: Tensor, images: Tensor) -> Tensor:
        return 5 * nn.functional.one_hot(logits.argmax(1), 10).float() - 2

    return subject(Changed(answers), bpda=network())


def nearest_training_image() -> Subject:
    """Classifies by the distance to the nearest training image of each class."""
    x, y = digits().train_x[:400].flatten(1), digits().train_y[:400]

    def distances(logits: Tensor, images: Tensor) -> Tensor:
        squares = (images.flatten(1)[:, None] - x[None]).square().sum(2)
        return torch.stack([-squares[:, y == k].amin(1) for k in range(10)], 1)

    return subject(Changed(distances))


HONEST: list[Callable[[], Subject]] = [
    linear, tiny, flat_margins, large_constant, larger_constant, quantised, two_levels,
    noisy_logits, noisy_images, dropout_at_test_time, random_shift, adversarially_trained,
    transformer, dropout_in_eval, batch_norm, overfitted, saturated_units, convolutional,
    small_logits, log_probabilities, untrained, nearest_training_image,
    one_hot_with_approximation,
    lambda: subject(network()), lambda: with_classes(2), lambda: with_classes(100),
]  # fmt: skip
NAMES = [build.__name__ for build in HONEST[:-3]] + ["ordinary", "two-classes", "100-classes"]


@pytest.mark.parametrize("build", HONEST, ids=NAMES)
def test_an_honest_model_is_not_accused(build: Callable[[], Subject]) -> None:
    found = examine_all(build())
    assert {k: e.sentence for k, e in found.items() if e.finding is Finding.WARNING} == {}
    assert not [e.sentence for e in found.values() if "failed" in e.sentence]


@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_an_honest_model_is_not_accused_on_few_images(n: int) -> None:
    data = digits()._replace(x=digits().x[:n], y=digits().y[:n])
    for module, draws in ((network(), 0), (noisy_images().module, 10)):
        assert warnings_of(subject(module, draws=draws, data=data)) == {}


def test_no_image_tests_nothing() -> None:
    data = digits()._replace(x=digits().x[:0], y=digits().y[:0])
    found = examine_all(subject(network(), data=data))
    assert {evidence.finding for evidence in found.values()} == {Finding.NOT_TESTED}
    assert set(found) == set(diagnostics())


def test_an_ordinary_network_passes_what_applies_to_it() -> None:
    built = subject(network())
    found = examine_all(built._replace(fresh_process=lambda x: network()(x)))
    untested = {name for name, e in found.items() if e.finding is Finding.NOT_TESTED}
    assert untested == {"approximation-ascends", "declared-randomness"}
    assert all(evidence.sentence.endswith(".") for evidence in found.values())


def test_the_true_gradient_of_a_quantised_model_is_named_not_accused() -> None:
    found = examine_all(quantised())
    assert "true gradient is zero" in found["gradient-agrees"].sentence
    assert "attacks use the declared BPDA approximation" in found["zero-gradients"].sentence
    assert found["zero-gradients"].finding is Finding.PASSED
    assert found["approximation-ascends"].finding is Finding.PASSED
