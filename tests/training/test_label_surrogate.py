"""Learning from labels alone: agreement, what is asked, what is left untouched, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, PluginError
from bench.plugin import L1, L2, KeyedRandomNumbers, Linf, PerturbationSet
from bench.training import label_surrogate
from bench.training.label_surrogate import (
    LIGHT,
    STRONG,
    LabelSurrogateRecipe,
    learn_from_labels,
    small_cnn,
)
from bench.training.surrogate_cache import label_function, training_images
from tests.fixtures.known_models import digits, gaussian, linear
from tests.fixtures.small_defenses import DIGITS, one_thread

__all__ = ["one_thread"]

BALL = Linf(Fraction(51, 255))
SHORT = LabelSurrogateRecipe("short", epochs=6)
ROUNDS = replace(SHORT, epochs=1, rounds=2)
ADVERSARIAL = replace(SHORT, epochs=2, adversarial=True, members=2)
IMAGES = training_images(DIGITS)
SOFTMAX = linear(gaussian(10, 64, seed=3))
"""A random linear model, whose labels are unlike those of the data set."""


def softmax_labels(images: Tensor) -> Tensor:
    """The labels of a linear model, which no gradient may reach."""
    assert not torch.is_grad_enabled()
    assert not images.requires_grad
    found: Tensor = SOFTMAX(images).argmax(1)
    return found


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def agreement(labels: Tensor) -> float:
    """The share of the first digits to which labels [n] are those of the linear model."""
    with torch.no_grad():
        expected = softmax_labels(digits(len(labels))[0])
    return float((labels == expected).float().mean())


@pytest.mark.row("A19", "B09")
def test_agreement_with_a_softmax_model_rises_with_the_queries() -> None:
    x, _ = digits(500)
    recipe, agreements = replace(SHORT, epochs=8), []
    for count in (40, 1000):
        learned = learn_from_labels(softmax_labels, IMAGES[:count], 10, BALL, recipe)
        agreements.append(agreement(learned.module(x).argmax(1)))
        assert learned.queries == count
    assert agreements[0] < 0.65
    assert agreements[1] > 0.75


@pytest.mark.row("B09")
def test_a_linear_model_of_the_digits_is_learned_almost_completely() -> None:
    x, y = digits(600)
    design = torch.cat([x.flatten(1), torch.ones(600, 1)], 1)
    ridge = design.T @ design + 10 * torch.eye(65)
    fitted = torch.linalg.solve(ridge, design.T @ nn.functional.one_hot(y, 10).float()).T
    model = linear(fitted[:, :64], fitted[:, 64])
    recipe = replace(SHORT, epochs=10)
    learned = learn_from_labels(label_function(model), IMAGES[:600], 10, BALL, recipe)
    agrees = learned.module(IMAGES[600:]).argmax(1) == model(IMAGES[600:]).argmax(1)
    assert float(agrees.float().mean()) > 0.85


def test_the_agreement_is_that_on_every_tenth_image() -> None:
    learned = learn_from_labels(softmax_labels, IMAGES[:200], 10, BALL, SHORT)
    held_out = IMAGES[9:200:10]
    with torch.no_grad():
        agrees = learned.module(held_out).argmax(1) == softmax_labels(held_out)
    assert learned.agreement == pytest.approx(float(agrees.float().mean()))


def test_labels_that_cannot_be_learned_show_as_low_agreement() -> None:
    def random_labels(images: Tensor) -> Tensor:
        return (images.flatten(1).sum(1) * 1e4).long() % 10

    assert learn_from_labels(random_labels, IMAGES[:300], 10, BALL, SHORT).agreement < 0.35


@pytest.mark.parametrize(
    ("recipe", "queries"),
    [(SHORT, 100), (ROUNDS, 100 + 2 * 90), (ADVERSARIAL, 100 + 2 * 90)],
    ids=["light", "rounds", "adversarial"],
)
@pytest.mark.parametrize("ball", [BALL, L2(Fraction(1)), L1(Fraction(2))], ids=lambda b: b.name)
def test_only_images_and_their_neighbours_are_asked_for(
    recipe: LabelSurrogateRecipe, queries: int, ball: PerturbationSet
) -> None:
    images, asked = IMAGES[:100], []

    def recorded(batch: Tensor) -> Tensor:
        asked.append(batch.clone())
        return softmax_labels(batch)

    learned = learn_from_labels(recorded, images, 10, ball, recipe)
    every = torch.cat(asked)
    assert len(every) == queries == learned.queries
    near = torch.stack([ball.contains(every, one.expand_as(every)) for one in images])
    assert bool(near.any(0).all())
    moved = (every[:, None] != images[None]).flatten(2).any(2).all(1)
    assert int(moved.sum()) == queries - 100


def test_the_adversarial_images_are_adversarial_to_the_surrogate() -> None:
    x, y = digits(64)
    model = linear(gaussian(10, 64, seed=1))
    key = KeyedRandomNumbers(torch.arange(64), torch.zeros(64, dtype=torch.int64))
    losses = []
    for ball in (BALL, L2(Fraction(1)), L1(Fraction(2))):
        adv = label_surrogate.ascend(model, x, y, ball, key)
        assert bool(ball.contains(adv, x).all())
        loss = nn.functional.cross_entropy
        losses.append(loss(model(adv), y) / loss(model(ball.sample(x, key)), y))
    assert min(losses) > 1.1


@pytest.mark.parametrize("recipe", [SHORT, ROUNDS, ADVERSARIAL], ids=lambda r: str(r.rounds))
def test_the_same_weights_again_whatever_torchs_random_state(recipe: LabelSurrogateRecipe) -> None:
    torch.manual_seed(1)
    first = learn_from_labels(softmax_labels, IMAGES[:150], 10, BALL, recipe)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = learn_from_labels(softmax_labels, IMAGES[:150], 10, BALL, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(first.module), weights(second.module))
    other = learn_from_labels(softmax_labels, IMAGES[:150], 10, BALL, replace(recipe, seed=1))
    assert not torch.equal(weights(first.module), weights(other.module))


def test_a_defense_that_writes_into_its_input_changes_nothing() -> None:
    def overwriting(images: Tensor) -> Tensor:
        labels = softmax_labels(images)
        images.zero_()
        return labels

    before = IMAGES.clone()
    for recipe in (ROUNDS, ADVERSARIAL):
        honest = learn_from_labels(softmax_labels, IMAGES[:100], 10, BALL, recipe)
        written = learn_from_labels(overwriting, IMAGES[:100], 10, BALL, recipe)
        assert torch.equal(weights(honest.module), weights(written.module))
    assert torch.equal(before, IMAGES)


def test_it_learns_where_the_caller_has_switched_gradients_off() -> None:
    with torch.no_grad():
        learned = learn_from_labels(softmax_labels, IMAGES[:300], 10, BALL, SHORT)
    assert learned.agreement > 0.5
    assert not any(p.requires_grad for p in learned.module.parameters())
    assert not learned.module.training


def test_every_member_learns() -> None:
    x, _ = digits(200)
    recipe = replace(SHORT, members=3)
    learned = learn_from_labels(softmax_labels, IMAGES[:500], 10, BALL, recipe)
    members = list(learned.module.members)  # type: ignore[arg-type]
    agreements = [agreement(one(x).argmax(1)) for one in members]
    assert len(members) == 3
    assert min(agreements) > 0.7
    assert not torch.equal(weights(members[0]), weights(members[1]))
    mean = torch.stack([one(x).log_softmax(1) for one in members]).mean(0)
    assert torch.allclose(learned.module(x), mean)


def test_reports_and_heartbeats() -> None:
    lines: list[str] = []
    beats: list[None] = []
    learn_from_labels(
        softmax_labels, IMAGES[:100], 10, BALL, ROUNDS,
        report=lines.append, heartbeat=lambda: beats.append(None),
    )  # fmt: skip
    assert [line.split(", loss")[0] for line in lines] == [
        f"round {number}/3, epoch 1/1" for number in (1, 2, 3)
    ]
    assert lines[-1].endswith("270 labels")
    assert len(beats) == 1 + 2 + 3


@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 1, 1), 2), ((1, 8, 20), 3), ((3, 32, 32), 10), ((1, 28, 28), 10), ((3, 100, 67), 100)],
)
def test_the_network_fits_every_shape(shape: tuple[int, int, int], classes: int) -> None:
    assert small_cnn(shape, classes)(torch.rand(2, *shape)).shape == (2, classes)


def test_colour_images_get_a_quarter_of_the_epochs() -> None:
    assert label_surrogate.epoch_count(STRONG, 1) == STRONG.epochs
    assert label_surrogate.epoch_count(STRONG, 3) == STRONG.epochs // 4
    assert label_surrogate.epoch_count(replace(LIGHT, epochs=1), 3) == 1


BAD_LABELS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "logits": (SOFTMAX, r"are torch.float32 \[90, 10\]; int64 \[90\] from 0 to 9 was expected"),
    "one row less": (lambda x: softmax_labels(x)[1:], r"are torch.int64 \[89\]"),
    "a column": (lambda x: softmax_labels(x)[:, None], r"are torch.int64 \[90, 1\]"),
    "int32": (lambda x: softmax_labels(x).int(), "are torch.int32"),
    "a class too many": (lambda x: softmax_labels(x) * 0 + 10, "contain 10"),
    "rejected": (lambda x: softmax_labels(x) * 0 - 1, "contain -1"),
    "numpy": (lambda x: softmax_labels(x).numpy(), "are ndarray"),
    "nothing": (lambda x: None, "are NoneType"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_cannot_be_used_are_refused(case: str) -> None:
    labels, sentence = BAD_LABELS[case]
    with pytest.raises(PluginError, match=f"^the labels of the defense {sentence}"):
        learn_from_labels(labels, IMAGES[:100], 10, BALL, SHORT)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "classes"), [(0, 10), (1, 10), (20, 1)])
def test_too_few_images_or_classes_are_refused(count: int, classes: int) -> None:
    with pytest.raises(BenchError, match=f"{count} training images of {classes} classes"):
        learn_from_labels(softmax_labels, IMAGES[:count], classes, BALL, SHORT)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "vit"}, "names the architecture 'vit'; known: small-cnn."),
        ({"epochs": 0}, "has 0 epochs"),
        ({"members": 0}, "0 members"),
        ({"rounds": -1}, "-1 rounds"),
    ],
)
def test_a_recipe_out_of_range_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        replace(SHORT, **changes)  # type: ignore[arg-type]


def test_the_majority_of_a_random_model_is_learned() -> None:
    class Noisy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            noise: Tensor = 2 * torch.randn(len(images), 10)
            return noise.add(SOFTMAX(images))

    x, _ = digits(200)
    one, many = (agreement(label_function(Noisy(), None, votes)(x)) for votes in (1, 25))
    assert one < many - 0.05
