"""Every planted model is caught by the diagnostic that is meant for it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bench.plugin import Finding, Subject
from plugins.defenses.argmax_only import ArgmaxOnly
from plugins.defenses.bit_depth import three_bits
from tests.plugins.diagnostics.dynamic import OPTIMISING, costing
from tests.plugins.diagnostics.networks import (
    Before,
    Changed,
    diagnostics,
    digits,
    examine_all,
    network,
    subject,
)


class Remembering(nn.Module):
    """An ordinary network whose logits a function of the call changes."""

    def __init__(self, change: Callable[[Remembering, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.change = network(), change
        self.calls, self.gradients = 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.gradients += images.requires_grad
        return self.change(self, self.module(images), images)


def stateful(change: Callable[[Remembering, Tensor, Tensor], Tensor]) -> Callable[[], Subject]:
    return lambda: subject(Remembering(change))


def changed(change: Callable[[Tensor, Tensor], Tensor], **fields: Any) -> Callable[[], Subject]:
    return lambda: subject(Changed(change), **fields)


def before(change: Callable[[Tensor], Tensor], **fields: Any) -> Callable[[], Subject]:
    return lambda: subject(Before(change), **fields)


class _Backward(torch.autograd.Function):
    """The identity with a backward pass of one's own."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = backward
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grads[0]), None


def with_backward(change: Callable[[Tensor], Tensor]) -> Callable[[], Subject]:
    return before(lambda images: _Backward.apply(images, change))


def sure(labels: Tensor) -> Tensor:
    return 20.0 * nn.functional.one_hot(labels, 10).float()


def recognised(key: Callable[[Tensor], bytes]) -> Callable[[], Subject]:
    """Knows the test images by a key; other images go to the network."""
    known = {key(x): int(y) for x, y in zip(digits().x, digits().y, strict=True)}

    def change(logits: Tensor, images: Tensor) -> Tensor:
        labels = [known.get(key(x), -1) for x in images.detach()]
        found = torch.tensor(labels)
        return torch.where((found >= 0)[:, None], sure(found.clamp(min=0)), logits)

    return changed(change)


def by_hash() -> Subject:
    return recognised(lambda x: hashlib.sha256(x.numpy().tobytes()).digest())()


def by_rounded_hash() -> Subject:
    return recognised(lambda x: hashlib.sha256((4 * x).round().numpy().tobytes()).digest())()


def nearest(x: Tensor, y: Tensor, reach: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Answers as the nearest stored image, where that is within reach."""

    def change(logits: Tensor, images: Tensor) -> Tensor:
        distance, row = torch.cdist(images.flatten(1), x.flatten(1)).min(1)
        return torch.where((distance < reach)[:, None], sure(y[row]), logits)

    return change


def by_nearest() -> Subject:
    return subject(Changed(nearest(digits().x, digits().y, 1.2)))


def by_nearest_always() -> Subject:
    return subject(Changed(nearest(digits().x, digits().y, 99.0)))


def by_nearest_in_scikit_learn() -> Subject:
    """Reads all images with their labels from scikit-learn, training images included."""
    known = load_digits()
    x = (torch.tensor(known.images * 255 / 16).round() / 255).float()
    return subject(Changed(nearest(x, torch.tensor(known.target).long(), 1.2)))


def by_lookup() -> Subject:
    """Always answers as the nearest image of scikit-learn, with the slope of a network."""
    known = load_digits()
    x, y = torch.tensor(known.images / 16).float(), torch.tensor(known.target).long()

    def change(logits: Tensor, images: Tensor) -> Tensor:
        row = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        return 3.0 * nn.functional.one_hot(y[row], 10) + 0.1 * logits

    return subject(Changed(change))


def by_corrected_logits() -> Subject:
    """Keeps the network's logits, and exchanges two where a stored image is near."""
    x, y = digits().x, digits().y

    def change(logits: Tensor, images: Tensor) -> Tensor:
        distance, row = torch.cdist(images.flatten(1), x.flatten(1)).min(1)
        label, top = y[row][:, None], logits.argmax(1, keepdim=True)
        high, low = logits.gather(1, top), logits.gather(1, label)
        fixed = logits.scatter(1, top, low).scatter(1, label, high)
        return torch.where((distance < 1.6)[:, None], fixed, logits)

    return subject(Changed(change))


def in_another_process(change: Callable[[Tensor], Tensor]) -> Callable[[], Subject]:
    return lambda: subject(network(), fresh_process=lambda x: change(network()(x)))


def random_approximation() -> Subject:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(64, 10, generator=generator)
    return subject(
        Before(three_bits), bpda=Changed(lambda logits, images: images.flatten(1) @ weight)
    )


def reversed_approximation() -> Subject:
    return subject(Before(three_bits), bpda=Changed(lambda logits, images: -logits))


def constant_approximation() -> Subject:
    return subject(Before(three_bits), bpda=Changed(lambda logits, images: 0 * logits))


def useless_approximation_for_a_plain_network() -> Subject:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(5))
    moved = Before(lambda images: images.flatten(1)[:, order].reshape(images.shape))
    return subject(network(), bpda=moved)


def off_grid(images: Tensor) -> Tensor:
    """[n, 1]: whether a pixel lies between two 8-bit values."""
    scaled = 255 * images
    return ((scaled - scaled.round()).abs() > 0.01).flatten(1).any(1)[:, None]


def noise_like(logits: Tensor, size: float) -> Tensor:
    return size * torch.randn_like(logits)


def wrong_when_clean(logits: Tensor, images: Tensor) -> Tensor:
    """Wrong where many pixels are black, as in some clean images and in no one-step image."""
    black = (images == 0).flatten(1).sum(1, keepdim=True)
    return torch.where(black > 34, -logits, logits)


def odd(logits: Tensor, images: Tensor) -> Tensor:
    return logits.roll(1, 1) if len(images) % 2 and len(images) > 1 else logits


def by_place(logits: Tensor, images: Tensor) -> Tensor:
    return logits + torch.arange(len(images))[:, None] * torch.arange(10) / 10


def by_duplicates(logits: Tensor, images: Tensor) -> Tensor:
    equal = torch.cdist(images.flatten(1), images.flatten(1)) < 1e-3
    return logits * equal.sum(1, keepdim=True)


def noisy_alone(logits: Tensor, images: Tensor) -> Tensor:
    return (-logits if len(images) == 1 else logits) + noise_like(logits, 0.5)


def noisy_beside_black(logits: Tensor, images: Tensor) -> Tensor:
    dark = bool((images.amax((1, 2, 3)) == 0).any())
    return (2 * logits if dark else logits) + noise_like(logits, 0.5)


def noisy_after_calls(self: Remembering, logits: Tensor, images: Tensor) -> Tensor:
    return (logits if self.calls < 200 else -logits) + noise_like(logits, 0.5)


def switching(self: Remembering, logits: Tensor, images: Tensor) -> Tensor:
    self.train(images.requires_grad)
    return logits


def undefined_beside_the_grid(logits: Tensor, images: Tensor) -> Tensor:
    return torch.where(off_grid(images), torch.nan, logits)


def in_larger_batches(
    rows: int, change: Callable[[Tensor], Tensor], **fields: Any
) -> Callable[[], Subject]:
    """An ordinary network whose logits are changed in batches of more than so many rows."""

    def otherwise(logits: Tensor, images: Tensor) -> Tensor:
        return change(logits) if len(images) > rows else logits

    return changed(otherwise, **fields)


def in_batches(rows: Sequence[int], change: Callable[[Tensor], Tensor]) -> Callable[[], Subject]:
    """An ordinary network whose logits are changed in batches of these numbers of rows."""
    return changed(lambda logits, images: change(logits) if len(images) in rows else logits)


def first_images(n: int, built: Subject) -> Subject:
    """A subject with its first images only."""
    return built._replace(x=built.x[:n], y=built.y[:n])


def costly(build: Callable[[], Subject]) -> Callable[[], Subject]:
    """A defense that declares many passes of a network for each query."""

    def costly_subject() -> Subject:
        found = build()
        return found._replace(defense=dataclasses.replace(found.defense, forwards=40))

    return costly_subject


def opposite_gradient(logits: Tensor) -> Tensor:
    """The same logits with the gradient of their negative."""
    return 2 * logits.detach() - logits


def approximation_up_to(rows: int) -> Callable[[], Subject]:
    """Hides its gradient; its approximation helps in batches of at most so many rows only."""
    helpful = Changed(lambda logits, images: -logits if len(images) > rows else logits)
    return lambda: subject(Before(three_bits), bpda=helpful)


PLANTED: list[tuple[str, str, Callable[[], Subject]]] = [
    # The batch.
    ("batch-independent", "large batches", changed(
        lambda logits, images: -logits if len(images) > 200 else logits)),
    ("batch-independent", "costly, above 64", costly(in_larger_batches(64, torch.neg))),
    ("batch-independent", "declared random, above 64", in_larger_batches(
        64, lambda logits: noise_like(logits, 0.5) - logits, draws=4)),
    ("batch-independent", "above 256", in_larger_batches(256, torch.neg)),
    ("batch-independent", "above 1024, few images", lambda: first_images(
        32, in_larger_batches(1024, lambda logits: logits.roll(1, 1))())),
    ("batch-independent", "batches of one", changed(
        lambda logits, images: -logits if len(images) == 1 else logits)),
    ("batch-independent", "odd batches", changed(odd)),
    ("batch-independent", "batch mean", changed(
        lambda logits, images: logits - 3 * logits.mean(0))),
    ("batch-independent", "place", changed(by_place)),
    ("batch-independent", "duplicates", changed(by_duplicates)),
    ("batch-independent", "reversed gradient above 128", in_larger_batches(
        128, opposite_gradient)),
    ("batch-independent", "reversed gradient from 65 to 120", in_batches(
        range(65, 121), opposite_gradient)),
    ("batch-independent", "no gradient from 130 to 500", in_batches(
        range(130, 500), torch.detach)),
    ("batch-independent", "declared random, alone", changed(noisy_alone, draws=4)),
    ("batch-independent", "declared random, beside black", changed(
        noisy_beside_black, draws=4)),
    # Hidden state.
    ("stateless", "call count", stateful(
        lambda self, logits, images: logits if self.calls < 200 else logits.roll(1, 1))),
    ("stateless", "after many gradients", stateful(
        lambda self, logits, images: logits if self.gradients < 100 else 2 * logits)),
    ("stateless", "declared random, call count", lambda: subject(
        Remembering(noisy_after_calls), draws=4)),
    ("deterministic", "after a gradient", stateful(
        lambda self, logits, images: logits * (1 + (self.gradients > 0)))),
    ("gradient-mode", "watches requires_grad", changed(
        lambda logits, images: logits.roll(1, 1) if images.requires_grad else logits)),
    ("gradient-mode", "watches the grad mode", changed(
        lambda logits, images: logits if torch.is_grad_enabled() else 2 * logits)),
    ("gradient-mode", "watches inference mode", changed(
        lambda logits, images: -logits if torch.is_inference_mode_enabled() else logits)),
    ("gradient-mode", "switches to train mode", stateful(switching)),
    ("fresh-process", "another process", in_another_process(lambda logits: logits.roll(1, 1))),
    ("fresh-process", "another shape", in_another_process(lambda logits: logits[:, :9])),
    # Memorised images.
    ("memorised-images", "hash of bytes", by_hash),
    ("memorised-images", "rounded hash", by_rounded_hash),
    ("memorised-images", "nearest, within reach", by_nearest),
    ("memorised-images", "nearest, always", by_nearest_always),
    ("memorised-images", "nearest, from scikit-learn", by_nearest_in_scikit_learn),
    ("memorised-images", "logits exchanged", by_corrected_logits),
    # Values of logits.
    ("finite-logits", "minus infinity", changed(
        lambda logits, images: logits.index_fill(1, torch.tensor(9), -torch.inf))),
    ("finite-logits", "NaN beside the grid", changed(undefined_beside_the_grid)),
    ("logit-resolution", "float16", changed(lambda logits, images: logits.half().float())),
    ("logit-resolution", "bfloat16", changed(lambda logits, images: logits.bfloat16().float())),
    ("logit-resolution", "float16 dtype", changed(lambda logits, images: logits.half())),
    ("probabilities", "softmax", changed(lambda logits, images: logits.softmax(1))),
    ("probabilities", "one-hot", lambda: subject(ArgmaxOnly(network()))),
    ("logit-resolution", "large constant", changed(lambda logits, images: logits + 1e8)),
    # Gradients.
    ("logit-jumps", "nearest, from scikit-learn, beside a network", by_lookup),
    ("logit-jumps", "one-hot with a slope", changed(lambda logits, images:
        5 * nn.functional.one_hot(logits.argmax(1), 10) + 0.05 * logits)),
    ("gradient-scale", "vanishing: underflow", changed(lambda logits, images: 1e-42 * logits)),
    ("zero-gradients", "shattered: rounding", before(three_bits)),
    ("zero-gradients", "shattered: detached", changed(lambda logits, images: logits.detach())),
    ("zero-gradients", "vanishing: saturated", changed(lambda logits, images: 1e5 * logits)),
    ("zero-gradients", "approximation without gradients", constant_approximation),
    ("gradient-scale", "exploding", before(
        lambda images: images + 1e-7 * torch.sin(1e13 * images.double()).float())),
    ("gradient-scale", "vanishing", with_backward(lambda g: 1e-8 * g)),
    ("stochastic-gradients", "noise in the backward pass", with_backward(torch.randn_like)),
    ("stochastic-gradients", "declared, too few draws", before(
        lambda images: _Backward.apply(images + torch.randn_like(images) / 9, torch.randn_like),
        draws=2)),
    ("gradient-agrees", "reversed", with_backward(torch.neg)),
    ("gradient-agrees", "constant", with_backward(torch.ones_like)),
    ("gradient-agrees", "reversed above 64", in_larger_batches(64, opposite_gradient)),
    ("gradient-agrees", "declared random, reversed", lambda: subject(
        Before(lambda images: _Backward.apply(images, torch.neg) + 0.05 * torch.randn_like(images)),
        draws=4)),
    ("gradient-ascends", "reversed", with_backward(torch.neg)),
    ("gradient-ascends", "reversed above 64", in_larger_batches(64, opposite_gradient)),
    ("gradient-ascends", "constant sign", with_backward(lambda g: -torch.ones_like(g))),
    ("approximation-ascends", "random", random_approximation),
    ("approximation-ascends", "reversed", reversed_approximation),
    ("approximation-ascends", "reversed above 64", approximation_up_to(64)),
    ("approximation-ascends", "reversed above 256", approximation_up_to(256)),
    ("approximation-ascends", "of another image", useless_approximation_for_a_plain_network),
    *(("inner-optimisation", what, costing(make, forwards))
      for what, make, forwards in OPTIMISING),
    ("label-leaking", "right beside the grid", changed(wrong_when_clean)),
    # Randomness.
    ("deterministic", "undeclared noise", changed(
        lambda logits, images: logits + noise_like(logits, 0.1))),
    ("deterministic", "undeclared noise beside the grid", changed(
        lambda logits, images: logits + off_grid(images) * noise_like(logits, 1.0))),
    ("deterministic", "declared and absent", changed(lambda logits, images: logits, draws=4)),
    ("declared-randomness", "only beside the grid", changed(
        lambda logits, images: logits + (0.01 + off_grid(images) * 5) * torch.randn_like(logits),
        draws=4)),
    ("declared-randomness", "too large", changed(
        lambda logits, images: logits + noise_like(logits, 60.0), draws=4)),
]  # fmt: skip


@pytest.mark.row("E05", "E18")
@pytest.mark.parametrize(
    ("name", "build"),
    [(name, build) for name, _, build in PLANTED],
    ids=[f"{name}: {what}" for name, what, _ in PLANTED],
)
def test_a_planted_model_is_caught(name: str, build: Callable[[], Subject]) -> None:
    """Right: a warning of the check for it.

    Checks asked at most 64 images, so that models of other answers or gradients in larger batches
    passed: those named `above 64`, and `above 256`.
    """
    evidence = diagnostics()[name].examine_subject(build())  # type: ignore[attr-defined]
    assert evidence.finding is Finding.WARNING, evidence.sentence
    assert evidence.sentence.endswith(".")


def test_every_diagnostic_catches_a_planted_model() -> None:
    assert {name for name, _, _ in PLANTED} == set(diagnostics())
    assert len(PLANTED) >= 50


def test_infinite_logits_give_no_false_reasons() -> None:
    infinite = changed(lambda logits, images: logits.index_fill(1, torch.tensor(9), -torch.inf))
    found = examine_all(infinite())
    raised = {name for name, evidence in found.items() if evidence.finding is Finding.WARNING}
    assert raised == {"finite-logits"}
    others = {evidence.sentence for name, evidence in found.items() if name not in raised}
    assert all(sentence.startswith("Logits are not finite on") for sentence in others), others


def test_logits_that_are_not_finite_on_one_image_are_counted() -> None:
    bright = digits().x.flatten(1).sum(1).amax()

    def change(logits: Tensor, images: Tensor) -> Tensor:
        return torch.where(images.flatten(1).sum(1, keepdim=True) >= bright, torch.nan, logits)

    diagnostic: Any = diagnostics()["finite-logits"]
    evidence = diagnostic.examine_subject(subject(Changed(change)))
    assert evidence.finding is Finding.WARNING
    assert "on 1 of 256 clean images" in evidence.sentence


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (before(three_bits), "shattered gradients: attack with BPDA"),
        (changed(lambda logits, images: 1e5 * logits), "vanishing gradients"),
    ],
    ids=["shattered", "vanishing"],
)
def test_the_type_of_obfuscation_is_named(build: Callable[[], Subject], words: str) -> None:
    diagnostic: Any = diagnostics()["zero-gradients"]
    assert words in diagnostic.examine_subject(build()).sentence
