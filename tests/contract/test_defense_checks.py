"""Every check of defenses fails on a defense made to fail it, and passes on a correct one.

Covers bench.contract.defense_fixture too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.contract.check import CheckOutcome
from bench.contract.fixtures import RidgeClassifier
from bench.contract.runner import CHECKS, FIXTURES, run_check
from bench.data import datasets
from bench.plugin import Claim, Dataset, Images, Randomness, Split
from bench.registry.registry import Registry
from tests.contract import planted
from tests.contract.planted import Wrapped, defense, run_named_check


def counting(self: Any, images: Tensor) -> Any:
    self.calls += 1
    return self.inner(images) + 1e-5 * self.calls


def waking(self: Any, images: Tensor) -> Any:
    self.calls += 1
    return self.inner(images) * (-1 if self.calls > 6 else 1)


def wary(self: Any, images: Tensor) -> Any:
    self.calls += images.requires_grad
    return self.inner(images) * (-1 if self.calls and not images.requires_grad else 1)


def training(self: Any, images: Tensor) -> Any:
    self.train()
    return self.inner(images)


def recording(self: Any, images: Tensor) -> Any:
    self.seen += 1
    return self.inner(images)


def overwriting(self: Any, images: Tensor) -> Any:
    answer = self.inner(images.clone())
    images.mul_(0.5)
    return answer


def drawing(self: Any, images: Tensor) -> Any:
    np.random.rand()
    return self.inner(images)


def private(self: Any, images: Tensor) -> Any:
    self.calls += 1
    generator = torch.Generator().manual_seed(self.calls)
    return self.inner(images) + torch.randn(10, generator=generator)


def position(self: Any, images: Tensor) -> Any:
    return self.inner(images) + torch.arange(len(images))[:, None].float().sin()


def alone(self: Any, images: Tensor) -> Any:
    return self.inner(images) * (-1 if len(images) == 1 else 1)


def standardised(self: Any, images: Tensor) -> Any:
    flat = images.flatten(1)
    return self.inner(images / flat.std(1)[:, None, None, None])


def batch_mean(self: Any, images: Tensor) -> Any:
    return self.inner(images - images.mean(0) + 0.5)


FORWARDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "answers-are-logits": lambda self, x: {"logits": self.inner(x)},
    "logits-have-one-column-a-class": lambda self, x: self.inner(x)[:, :9],
    "logits-are-float32": lambda self, x: self.inner(x).double(),
    "logits-are-finite": lambda self, x: self.inner(x) / 0,
    "black-and-white-are-images": standardised,
    "asking-twice-answers-twice-the-same": counting,
    "companions-do-not-matter": batch_mean,
    "order-does-not-matter": position,
    "one-image-is-a-batch": alone,
    "calls-leave-no-trace": waking,
    "gradients-leave-no-trace": wary,
    "gradients-are-of-the-same-answer": lambda self, x: self.inner(x) + x.requires_grad,
    "eval-mode-is-kept": training,
    "weights-are-left-alone": recording,
    "images-are-left-alone": overwriting,
    "global-random-state-is-left-alone": drawing,
    "randomness-is-declared": lambda self, x: self.inner(x) + torch.randn(10),
    "better-than-chance": lambda self, x: -self.inner(x),
}


@pytest.mark.parametrize("check", FORWARDS)
def test_a_check_fails_on_a_forward_made_to_fail_it(
    registry: Registry, classifier: nn.Module, check: str
) -> None:
    bad = defense(lambda loader: Wrapped(classifier, FORWARDS[check]))
    assert run_named_check(registry, "defense", bad, check).outcome is CheckOutcome.FAIL
    good = defense(lambda loader: Wrapped(classifier, lambda self, x: self.inner(x)))
    result = run_named_check(registry, "defense", good, check)
    assert result.outcome is CheckOutcome.PASS, result.sentence


def clamped(self: Any, images: Tensor) -> Any:
    images.data.clamp_(0.25, 0.75)
    return self.inner(images)


def rounded(self: Any, images: Tensor) -> Any:
    images.data.mul_(255).round_().div_(255)
    return self.inner(images)


def boxed(self: Any, images: Tensor) -> Any:
    given = images if not images.requires_grad else images.clone()
    return self.inner(given.clamp_(0, 1))


def large(self: Any, images: Tensor) -> Any:
    if len(images) > 100:
        images.data.zero_()
    return self.inner(images)


def single(self: Any, images: Tensor) -> Any:
    if len(images) == 1:
        images.data.mul_(0.9)
    return self.inner(images)


def in_grad_mode(self: Any, images: Tensor) -> Any:
    if images.requires_grad:
        images.data[0].add_(0.1)
    return self.inner(images)


def after_a_gradient(self: Any, images: Tensor) -> Any:
    self.calls += images.requires_grad
    if self.calls and not images.requires_grad:
        images.data[-1].add_(0.1)
    return self.inner(images)


def at_the_next_call(self: Any, images: Tensor) -> Any:
    if isinstance(self.calls, Tensor):
        self.calls.data.zero_()
    self.calls = images
    return self.inner(images)


class Late(torch.autograd.Function):
    """The identity; its backward pass writes into the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, source: Tensor) -> Tensor:
        ctx.source = source
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.source.data.zero_()
        return grads[0], None


WRITING = (clamped, rounded, boxed, large, single, in_grad_mode, after_a_gradient)
LATE_WRITING = (at_the_next_call, lambda self, x: self.inner(Late.apply(x, x)))


@pytest.mark.parametrize("forward", [*WRITING, *LATE_WRITING])
def test_a_forward_that_writes_into_its_images_fails(
    registry: Registry, classifier: nn.Module, forward: Callable[[Any, Tensor], Any]
) -> None:
    bad = defense(lambda loader: Wrapped(classifier, forward))
    checks = [check for check in CHECKS["defense"] if check.name != "images-are-left-alone"]
    extended = planted.extended(registry, "defense", bad)
    fixture = FIXTURES["defense"](extended, bad)
    for check in checks[:10]:  # they come first in `bench check`, and query the same images
        run_check("defense", "planted", check, fixture)
    (check,) = (check for check in CHECKS["defense"] if check.name == "images-are-left-alone")
    result = run_check("defense", "planted", check, fixture)
    assert result.outcome is CheckOutcome.FAIL
    assert "forward wrote into its input" in result.sentence
    x, _ = fixture.examples
    assert torch.equal(x, datasets.first_examples(fixture.dataset, len(x)).tensor())


@pytest.mark.parametrize("size", [1, 2, 20])
def test_a_data_set_of_few_images_is_enough(
    registry: Registry, classifier: nn.Module, size: int
) -> None:
    whole = datasets.load_dataset(registry.datasets["digits"].value)
    test = Split(whole.test.images[:size].copy(), whole.test.labels[:size].copy())
    few = Dataset(
        "few", registry.datasets["digits"].value.classes, (1, 8, 8),
        lambda folder: Images(whole.train, test, whole.index[:size].copy()), size,
    )  # fmt: skip
    small = planted.extended(registry, "dataset", few)
    good = defense(
        lambda loader: Wrapped(classifier, lambda self, x: self.inner(x)), datasets=("few",)
    )
    for check in CHECKS["defense"]:
        result = run_named_check(small, "defense", good, check.name)
        few_right = check.name in ("better-than-chance", "not-memorised", "not-looked-up")
        assert few_right or result.outcome is not CheckOutcome.FAIL, result
    bad = defense(lambda loader: Wrapped(classifier, batch_mean), datasets=("few",))
    result = run_named_check(small, "defense", bad, "companions-do-not-matter")
    assert result.outcome is CheckOutcome.FAIL


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_constant_logits_that_are_not_finite_fail_no_check_of_repetition(
    registry: Registry, classifier: nn.Module, value: float
) -> None:
    def one_column(self: Any, images: Tensor) -> Any:
        return self.inner(images).index_fill(1, torch.tensor([9]), value)

    bad = defense(lambda loader: Wrapped(classifier, one_column))
    for name in (
        "asking-twice-answers-twice-the-same", "companions-do-not-matter",
        "order-does-not-matter", "one-image-is-a-batch", "calls-leave-no-trace",
        "randomness-is-declared", "two-builds-are-one", "saved-is-loaded",
    ):  # fmt: skip
        result = run_named_check(registry, "defense", bad, name)
        assert result.outcome is CheckOutcome.PASS, result
    finite = run_named_check(registry, "defense", bad, "logits-are-finite")
    assert finite.outcome is CheckOutcome.FAIL


def test_logits_that_are_finite_at_times_are_called_not_finite(
    registry: Registry, classifier: nn.Module
) -> None:
    def in_company(self: Any, images: Tensor) -> Any:
        return self.inner(images) + (-torch.inf if len(images) == 1 else 0)

    bad = defense(lambda loader: Wrapped(classifier, in_company))
    result = run_named_check(registry, "defense", bad, "one-image-is-a-batch")
    assert result.outcome is CheckOutcome.FAIL
    assert "not finite at batch size 1" in result.sentence and "inf of" not in result.sentence


def above_64(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Any]:
    """A forward whose logits are changed in batches of more than 64 images."""

    def forward(self: Any, images: Tensor) -> Any:
        logits = self.inner(images)
        return change(logits) if len(images) > 64 else logits

    return forward


@pytest.mark.parametrize("change", [
    torch.neg, lambda logits: logits.roll(1, 1), lambda logits: logits - logits.mean(0),
])  # fmt: skip
def test_other_logits_in_large_batches_fail(
    registry: Registry, classifier: nn.Module, change: Callable[[Tensor], Tensor]
) -> None:
    """Right: a batch as large as that of a run fails, which has 512 images of this size."""
    bad = defense(lambda loader: Wrapped(classifier, above_64(change)))
    result = run_named_check(registry, "defense", bad, "one-image-is-a-batch")
    assert result.outcome is CheckOutcome.FAIL
    assert "of their scale at batch size 512; " in result.sentence


@pytest.mark.parametrize("change", [
    torch.Tensor.detach, lambda logits: 2 * logits.detach() - logits,
    lambda logits: logits.detach() + (logits - logits.detach()).roll(1, 1),
])  # fmt: skip
def test_other_gradients_in_large_batches_fail(
    registry: Registry, classifier: nn.Module, change: Callable[[Tensor], Tensor]
) -> None:
    """Right: the slopes are those of a batch of 128; in batches above 64 they were not compared."""
    bad = defense(lambda loader: Wrapped(classifier, above_64(change)))
    result = run_named_check(registry, "defense", bad, "gradient-is-the-slope")
    assert result.outcome is CheckOutcome.FAIL
    assert "the cosine of gradients and finite differences is" in result.sentence


def test_the_slope_of_a_control_is_checked(registry: Registry) -> None:
    control = registry.defenses["argmax-only"].value
    result = run_named_check(registry, "defense", control, "a-gradient-exists", "built-in")
    assert result.outcome is CheckOutcome.NOT_APPLICABLE
    assert "control" in result.sentence
    wrong = replace(control, build=lambda loader: Reversed())
    result = run_named_check(registry, "defense", wrong, "gradient-is-the-slope", "built-in")
    assert result.outcome is CheckOutcome.FAIL


class Reversed(nn.Module):
    """A linear model whose gradient has the wrong sign."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)[:, :10]
        return 2 * flat.detach() - flat


class Unsaved(RidgeClassifier):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: object) -> None:
        return


class Looked(nn.Module):
    """Looks up the exact test images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.labels = {image.numpy().tobytes(): y for image, y in zip(images, labels, strict=True)}

    def forward(self, images: Tensor) -> Tensor:
        found = [self.labels.get(image.numpy().tobytes(), 0) for image in images.detach()]
        return nn.functional.one_hot(torch.tensor(found), 10).float()


class Nearest(nn.Module):
    """Classifies by the nearest test image where it is near; class 0 elsewhere."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.images, self.labels = images.flatten(1), labels

    def forward(self, images: Tensor) -> Tensor:
        near = torch.cdist(images.flatten(1), self.images).min(1)
        known = near.values < 0.5
        label = torch.where(known, self.labels[near.indices], 0)
        return nn.functional.one_hot(label, 10).float()


BUILT = 0


def differing(classifier: nn.Module) -> nn.Module:
    global BUILT
    BUILT += 1
    shift = float(BUILT)
    return Wrapped(classifier, lambda self, x: self.inner(x) + shift)


def test_build_must_return_a_module(registry: Registry) -> None:
    bad = defense(lambda loader: "a module")
    result = run_named_check(registry, "defense", bad, "builds")
    assert result.outcome is CheckOutcome.FAIL
    assert "torch.nn.Module was expected" in result.sentence


def test_a_module_must_return_a_tensor(registry: Registry, classifier: nn.Module) -> None:
    bad = defense(lambda loader: Wrapped(classifier, lambda self, x: {"logits": self.inner(x)}))
    result = run_named_check(registry, "defense", bad, "logits-are-finite")
    assert "the defense returned a value of type dict; a tensor of logits" in result.sentence
    assert "return one entry of it (logits)." in result.sentence


def test_two_builds_that_differ_fail(registry: Registry, classifier: nn.Module) -> None:
    bad = defense(lambda loader: differing(classifier))
    assert (
        run_named_check(registry, "defense", bad, "two-builds-are-one").outcome is CheckOutcome.FAIL
    )


def test_state_outside_the_state_dict_fails(
    registry: Registry, classifier: RidgeClassifier
) -> None:
    bad = defense(lambda loader: Unsaved(classifier.inner, classifier.outer, classifier.bias))
    assert run_named_check(registry, "defense", bad, "saved-is-loaded").outcome is CheckOutcome.FAIL


@pytest.mark.parametrize(("fake", "check"), [(Looked, "not-looked-up"), (Nearest, "not-memorised")])
def test_memorised_test_images_fail(registry: Registry, fake: Any, check: str) -> None:
    examples = datasets.first_examples(registry.datasets["digits"].value, 500)
    x, y = examples.tensor(), torch.from_numpy(examples.labels.copy())
    assert (
        run_named_check(registry, "defense", defense(lambda loader: fake(x, y)), check).outcome
        is CheckOutcome.FAIL
    )


def test_a_nearest_neighbour_classifier_passes_the_check_for_look_up(registry: Registry) -> None:
    examples = datasets.first_examples(registry.datasets["digits"].value, 500)
    x, y = examples.tensor(), torch.from_numpy(examples.labels.copy())
    near = defense(lambda loader: Nearest(x, y))
    assert run_named_check(registry, "defense", near, "not-looked-up").outcome is CheckOutcome.PASS


@pytest.mark.parametrize(
    ("rejected", "outcome"), [(40, CheckOutcome.PASS), (41, CheckOutcome.FAIL)]
)
def test_rejecting_more_than_declared_fails(
    registry: Registry, classifier: RidgeClassifier, rejected: int, outcome: CheckOutcome
) -> None:
    """Of 256 clean images at most 2 * 5 % and three standard errors more, that is 40."""
    grey = (
        datasets.first_examples(registry.datasets["digits"].value, 256).tensor().flatten(1).mean(1)
    )
    level = grey.sort(descending=True).values[rejected - 1 : rejected + 1].mean()

    def scored(wrapped: Wrapped, images: Tensor) -> Tensor:
        score = images.flatten(1).mean(1, keepdim=True) - level
        return torch.cat([wrapped.inner(images), score], 1)

    bad = replace(defense(lambda loader: Wrapped(classifier, scored)), rejects=0.05)
    assert run_named_check(registry, "defense", bad, "clean-images-are-accepted").outcome is outcome


RECORDS: list[tuple[str, dict[str, Any], str]] = [
    ("names-are-known", {"claims": (Claim("digits-linff", 0.5),)}, "Did you mean 'digits-linf'?"),
    ("names-are-known", {"claims": (Claim("mnist-linf", 0.5),)}, "not in `datasets`"),
    ("names-are-known", {"surrogate": "undefnded"}, "Did you mean 'undefended'?"),
    ("names-are-known", {"datasets": ("digitz",)}, "Did you mean 'digits'?"),
    ("claims-are-shares", {"claims": (Claim("digits-linf", 87.0),)}, "a share is 0 to 1"),
    ("claims-are-shares", {"claims": (Claim("a", 0.5), Claim("a", 0.6))}, "claimed twice"),
    ("randomness-is-declared", {"randomness": Randomness()}, "do not vary with the seed"),
]


@pytest.mark.parametrize(("check", "record", "sentence"), RECORDS)
def test_a_check_fails_on_a_record_made_to_fail_it(
    registry: Registry, classifier: nn.Module, check: str, record: dict[str, Any], sentence: str
) -> None:
    result = run_named_check(
        registry, "defense", defense(lambda loader: classifier, **record), check
    )
    assert result.outcome is CheckOutcome.FAIL
    assert sentence in result.sentence


def test_a_private_random_generator_is_not_declared_randomness(
    registry: Registry, classifier: nn.Module
) -> None:
    bad = defense(lambda loader: Wrapped(classifier, private), randomness=Randomness())
    result = run_named_check(registry, "defense", bad, "randomness-is-declared")
    assert "one seed of torch gave two results" in result.sentence


def test_declared_randomness_fails_no_check(registry: Registry, classifier: nn.Module) -> None:
    noisy = defense(
        lambda loader: Wrapped(
            classifier, lambda self, x: self.inner(x + 0.05 * torch.randn_like(x))
        ),
        randomness=Randomness(),
    )
    outcomes = {
        check.name: run_named_check(registry, "defense", noisy, check.name)
        for check in CHECKS["defense"]
    }
    assert [r for r in outcomes.values() if r.outcome is CheckOutcome.FAIL] == []
