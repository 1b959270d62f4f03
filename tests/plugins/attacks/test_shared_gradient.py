"""One point for all images by mean gradients: universal perturbations and patches."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.outcomes import Verdict
from bench.data import datasets
from bench.data.image_rows import to_float
from bench.registry.registry import Registry
from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.parametric import ParametricSet
from bench.threats.random_patch import RandomPatch
from tests.fixtures.known_models import binary, gaussian, interior
from tests.fixtures.protocol_dg import DIGITS, DigitsTestbed, recipe, testbed
from tests.fixtures.shared_run import Labelled, SharedRun, run_shared

__all__ = ["testbed"]

EPS = Fraction(1, 5)


@cache
def attack(name: str) -> Any:
    """A registered attack; the one that visits image by image, with fewer of them."""
    found = Registry.without_submissions().find("attack", name).value
    return replace(found, images=150, passes=2) if name == "universal-deepfool" else found


def digits_halves(bed: DigitsTestbed) -> tuple[Labelled, Labelled]:
    """The training and the test half of the testbed."""
    half = datasets.load_dataset(DIGITS).train
    assert half is not None
    train = to_float(torch.tensor(half.images)), torch.tensor(half.labels)
    return train, (bed.x, bed.y)


def on_digits(bed: DigitsTestbed, name: str, ball: ParametricSet, seed: int = 0) -> SharedRun:
    """An attack against the testbed's undefended network."""
    return run_shared(
        attack(name), ball, bed.train("standard", recipe()), *digits_halves(bed), seed
    )


@pytest.mark.row("A12", "G15")
@pytest.mark.parametrize("name", ["universal-gradient", "universal-deepfool"])
def test_one_change_breaks_five_times_what_random_signs_do(
    testbed: DigitsTestbed, name: str
) -> None:
    ball = LinfDelta(eps=EPS)
    found = on_digits(testbed, name, ball)
    random = [on_digits(testbed, "shared-random", ball, seed) for seed in range(20)]
    counts = [one.broken for one in random]
    assert all(torch.equal(one.point.abs(), torch.full_like(one.point, 0.2)) for one in random)
    assert len({one.point.numpy().tobytes() for one in random}) == 20
    assert found.broken >= 5 * np.mean(counts) and found.broken > max(counts)
    assert found.changed > 0.4


@pytest.mark.row("A12", "G15")
@pytest.mark.parametrize("name", ["universal-gradient", "universal-deepfool"])
def test_every_success_carries_the_one_change(testbed: DigitsTestbed, name: str) -> None:
    found = on_digits(testbed, name, LinfDelta(eps=EPS))
    broken = torch.from_numpy(found.outcomes.verdict == Verdict.BROKEN)
    assert int(broken.sum()) > 100
    assert (found.points[broken] == found.point).flatten(1).all()
    model = testbed.train("standard", recipe())
    images = (testbed.x + found.point).clamp(0, 1)
    assert torch.equal(broken, model(images).argmax(1) != testbed.y)
    assert float(found.point.abs().max()) <= 0.2 + 1e-6
    assert found.forwards > 0 and found.gradients > 0


@pytest.mark.row("A12")
@pytest.mark.parametrize("name", ["universal-gradient", "universal-deepfool"])
def test_a_change_of_bounded_length_breaks_more_than_random_directions(
    testbed: DigitsTestbed, name: str
) -> None:
    ball = L2Delta(eps=Fraction(2))
    found = on_digits(testbed, name, ball)
    random = [on_digits(testbed, "shared-random", ball, seed).broken for seed in range(5)]
    assert found.broken > 3 * max(random)
    assert float(found.point.square().sum().sqrt()) <= 2 * (1 + 2e-6)


@pytest.mark.row("A12")
@pytest.mark.parametrize("name", ["universal-gradient", "universal-deepfool"])
def test_on_a_linear_model_the_change_is_the_sign_of_the_weights(name: str) -> None:
    """Of one class the optimum is -eps sign(w), and it fools no image of the other class."""
    weight = gaussian(1, 40)[0]
    model, x = binary(weight, float(-(0.5 * weight).sum())), interior(400, 40)
    y = model(x).argmax(1)
    one = y == 1
    changed = attack(name)
    found = run_shared(changed, LinfDelta(eps=Fraction(1, 10)), model, (x[one], y[one]), (x, y))
    largest = float(found.point.abs().max())
    aligned = float((found.point.flatten() * -weight).sum() / (largest * weight.abs().sum()))
    assert aligned > 0.95 and largest <= 0.1 + 1e-6
    # The one ends at four fifths, the other goes on to the edge of the set.
    least = 0.8 if name == "universal-deepfool" else 1.0
    assert found.broken >= least * int(one.sum()) > 100
    assert largest > 0.099 or name == "universal-deepfool"
    assert (found.outcomes.verdict[~one.numpy()] == Verdict.ROBUST).all()


def test_a_radius_of_zero_leaves_clean_accuracy(testbed: DigitsTestbed) -> None:
    found = on_digits(testbed, "shared-random", LinfDelta(eps=Fraction(0)))
    assert found.changed == 0 and not found.point.any()


# --- patches


@cache
def fashion() -> tuple[nn.Module, Labelled, Labelled]:
    """A small network of Fashion-MNIST, 4000 training and 500 test images."""
    dataset = Registry.without_submissions().find("dataset", "fashion-mnist").value
    if not (datasets.data_folder() / "FashionMNIST").exists():
        pytest.skip("Fashion-MNIST is not in $BENCH_DATA.")
    half = datasets.load_dataset(dataset).train
    assert half is not None
    train = to_float(torch.tensor(half.images[:4000])), torch.tensor(half.labels[:4000])
    few = datasets.first_examples(dataset, 500)
    return trained(*train), train, (few.tensor(), torch.tensor(few.labels))


def trained(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A network of three convolutions, trained for eight epochs."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(8):
            for batch in torch.split(torch.randperm(len(x)), 100):
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
    return model.eval().requires_grad_(False)


@cache
def patched(name: str, size: int, seed: int = 0) -> SharedRun:
    """A patch of a random place, scale and rotation on Fashion-MNIST."""
    ball = RandomPatch(size=size, smallest=0.8, largest=1.2, degrees=20.0)
    model, train, test = fashion()
    few = train[0][:500], train[1][:500]
    fitted = attack(name) if name == "shared-random" else replace(attack(name), epochs=8)
    return run_shared(fitted, ball, model, few, test, seed)


def wrong_when_clean() -> int:
    """Test images that are misclassified without a patch."""
    model, _, (x, y) = fashion()
    return int((model(x).argmax(1) != y).sum())


@pytest.mark.row("P01")
def test_a_patch_at_a_random_place_beats_random_patches_by_a_wide_margin() -> None:
    clean = wrong_when_clean()
    random = [patched("shared-random", 8, seed).broken - clean for seed in range(5)]
    added = patched("adversarial-patch", 8).broken - clean
    assert added > 2.5 * max(random) and added > 60, (added, random)


@pytest.mark.row("P01")
def test_success_does_not_fall_with_the_area_of_the_patch() -> None:
    broken = [patched("adversarial-patch", size).broken for size in (3, 5, 8)]
    assert broken == sorted(broken) and broken[0] < broken[-1], broken


@pytest.mark.row("P01")
def test_pixels_outside_the_patch_are_equal_to_the_bit() -> None:
    ball = RandomPatch(size=8, smallest=0.8, largest=1.2, degrees=20.0)
    found = patched("adversarial-patch", 8)
    x = fashion()[2][0]
    images, inside = ball.apply(found.points, x), ball.places(x).inside[:, None]
    assert torch.equal(torch.where(inside, 0, images), torch.where(inside, 0, x))
    covered = inside.float().mean((1, 2, 3))
    assert covered.min() > 0.8 * 0.64 * 64 / 784 and covered.max() < 1.3 * 1.44 * 64 / 784
    assert len({tuple(row) for row in inside.flatten(1).int().tolist()}) > 400
