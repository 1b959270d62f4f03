"""Recipes for image data sets: augmentations, schedules, and a short training of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.data import datasets
from bench.engine.problem import attack_once
from bench.plugin import Dataset, Defense, InnerAttack, Linf, Recipe, TrainingBatch
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.training.loop import SCHEDULES, train_weights
from bench.training.recipes import resolve_inner_attack
from bench.training.state import EpochReport
from plugins.attacks.fast_gradient import bench_attacks as fast_gradients
from plugins.attacks.pgd import PGD
from plugins.defenses import augmentation, cifar10_training, residual_networks
from plugins.defenses._augmentations import add_gaussian_noise, random_flip, random_shift
from plugins.defenses._residual_blocks import preact_resnet18
from tests.fixtures.images import first_of
from tests.fixtures.known_models import binary, gaussian, interior
from tests.fixtures.protocol_dg import mlp

FEW = 256
REAL = {"cifar-standard": 1, "cifar-pgd": 8, "cifar-fast": 2, "cifar-trades": 11}
"""Recipe -> backward passes for each image in each epoch."""
Vary = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@cache
def known_registry() -> Registry:
    return Registry.load(Path("no-submissions"))


def recipe_named(name: str) -> Recipe:
    found: Recipe | None = known_registry().find("defense", name).value.recipe
    assert found is not None
    return found


def pictures(rows: int, shape: tuple[int, int, int] = (3, 9, 7)) -> Tensor:
    """No pixel is zero, so shifted-in black pixels can be recognised."""
    return torch.randint(1, 256, (rows, *shape)) / 255


@pytest.mark.row("D04")
def test_random_flips_mirror_about_half_of_the_images() -> None:
    x = pictures(2000)
    found = random_flip(x)
    turned = (found == x.flip(3)).flatten(1).all(1)
    assert (turned | (found == x).flatten(1).all(1)).all()
    assert 0.45 < turned.double().mean() < 0.55
    assert not torch.equal(random_flip(x), found), "every call draws anew"


@pytest.mark.row("D04")
@pytest.mark.parametrize("reach", [1, 2])
def test_a_shifted_image_is_a_crop_of_the_padded_one_and_every_crop_occurs(reach: int) -> None:
    x = pictures(1500)
    found = random_shift(x, reach)
    padded = torch.nn.functional.pad(x, (reach,) * 4)
    hits = {}
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            crop = padded[:, :, down : down + 9, right : right + 7]
            hits[down, right] = (found == crop).flatten(1).all(1)
    assert torch.stack(list(hits.values())).sum(0).eq(1).all(), "exactly one crop each"
    shares = torch.stack([hit.double().mean() for hit in hits.values()])
    assert shares.min() > 0.5 / len(hits) and shares.max() < 2 / len(hits)


@pytest.mark.row("D04")
def test_noise_has_its_deviation_and_stays_in_the_box() -> None:
    grey = torch.full((200, 1, 8, 8), 0.5)
    assert float(add_gaussian_noise(grey, 0.1).std()) == pytest.approx(0.1, rel=0.03)
    edge = add_gaussian_noise(torch.cat([0 * grey, 0 * grey + 1]), 0.1)
    assert edge.min() == 0 and edge.max() == 1
    assert torch.equal(add_gaussian_noise(grey, 0.0), grey)


@pytest.mark.row("D04")
@pytest.mark.parametrize(
    ("vary", "shape"),
    [
        (augmentation.augment, (1, 8, 8)),
        (cifar10_training.augment, (3, 32, 32)),
        (residual_networks.augment, (3, 32, 32)),
        (residual_networks.augment, (1, 28, 28)),
    ],
)
def test_an_augmentation_keeps_shape_and_box_with_one_draw_for_each_image(
    vary: Vary, shape: tuple[int, int, int]
) -> None:
    x = pictures(1, shape).expand(50, *shape)
    found = vary(x)
    assert found.shape == x.shape and found.dtype == x.dtype
    assert found.min() >= 0 and found.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in found}) > 30


@pytest.mark.row("D04")
def test_grey_images_are_not_mirrored() -> None:
    ramp = torch.linspace(0.2, 0.8, 28).expand(200, 1, 28, 28)
    middle = residual_networks.augment(ramp)[..., 12:16, 8:20]
    assert (middle.diff(dim=3) > 0).all()
    ramp = torch.linspace(0, 1, 8).expand(200, 1, 8, 8)
    middle = augmentation.augment(ramp)[..., 1:-1, 1:-1].mean((0, 1, 2))
    assert (middle.diff() > 0).all()


# --- schedules -------------------------------------------------------------------------------


@pytest.mark.row("D18")
@pytest.mark.parametrize(
    ("schedule", "peak", "area"),
    [
        ("constant", 0.3, 1.0),
        ("cosine", 0.0, 0.5),
        ("cyclic", 0.5, 0.5),
        ("steps", 0.0, 0.5 + 0.25 * 0.1 + 0.25 * 0.01),
    ],
)
def test_a_schedule_has_the_expected_peak_and_area(schedule: str, peak: float, area: float) -> None:
    """The area is the mean learning rate in units of the peak."""
    rate = SCHEDULES[schedule]
    shares = [(batch + 0.5) / 4000 for batch in range(4000)]
    rates = [rate(share) for share in shares]
    assert rate(peak) == 1.0 == pytest.approx(max(rates), abs=1e-3)
    assert sum(rates) / len(rates) == pytest.approx(area, abs=1e-6)
    assert min(rates) >= 0


@pytest.mark.row("D18")
def test_the_cyclic_schedule_is_linear_up_and_down_to_zero() -> None:
    rate = SCHEDULES["cyclic"]
    assert rate(0.0) == rate(1.0) == 0.0
    for share in (0.1, 0.2, 0.35):
        assert rate(share) == pytest.approx(2 * share) == pytest.approx(rate(1 - share))


# --- inner attacks ---------------------------------------------------------------------------


@pytest.mark.row("D17")
def test_the_step_of_fast_training_has_five_quarters_of_the_radius_from_any_start() -> None:
    """x' = clip(u + 1.25 eps s): from any u in the ball it reaches a quarter radius beyond x."""
    inner = recipe_named("cifar-fast").inner
    assert isinstance(inner, InnerAttack)
    eps, weight, x = inner.ball.radius, gaussian(12), interior(200, 12)
    model = binary(weight, 100.0)
    y = torch.ones(200, dtype=torch.int64)
    attack = resolve_inner_attack(known_registry(), inner).value
    adv = attack_once(attack, model, x, y, inner.ball, seed=0, example=torch.arange(200))
    ahead = ((adv - x) * -weight.sign().view(1, 1, 1, 12)) / eps
    assert ahead.min() > 0.25 - 1e-3 and ahead.max() < 1 + 1e-3
    at_edge = (ahead > 1 - 1e-3).double().mean()
    assert 0.6 < at_edge < 0.65, "u > -eps / 4: five eighths of the starts reach the edge"


@pytest.mark.row("D17", "D07")
def test_from_the_clean_image_with_a_step_of_eps_it_is_fgsm() -> None:
    fgsm = next(attack for attack in fast_gradients() if attack.name == "fgsm")
    x, y, ball = pictures(20, (1, 8, 8)), torch.arange(20) % 10, Linf(Fraction(1, 10))
    play = partial(
        attack_once, model=mlp((1, 8, 8), 10), x=x, y=y, ball=ball, seed=0, example=torch.arange(20)
    )
    assert torch.equal(play(PGD(steps=1, rate=1.0, random_start=False)), play(fgsm))
    assert not torch.equal(play(PGD(steps=1, rate=1.0)), play(fgsm))


@pytest.mark.parametrize(
    ("name", "pixels", "steps"),
    [("cifar-pgd", 2, 7), ("cifar-fast", 10, 1), ("cifar-trades", 8 * 0.007 / 0.031, 10)],
)
def test_inner_attacks_have_the_papers_steps_inside_eight_of_255(
    name: str, pixels: float, steps: int
) -> None:
    inner = recipe_named(name).inner
    assert isinstance(inner, InnerAttack) and inner.ball == Linf(Fraction(8, 255))
    attack = resolve_inner_attack(known_registry(), inner).value
    assert attack.steps == steps
    assert getattr(attack, "rate", 0) * 8 == pytest.approx(pixels)
    assert steps == 1 or attack.steps * getattr(attack, "rate", 0) * 8 >= 13, "it can turn round"


def test_the_image_recipes_are_registered_outside_the_default_set() -> None:
    ours = {"augmented", "cnn-dropout", "undefended-images", "cifar-base", *REAL}
    ours |= {"resnet-20", "preresnet-20", "se-resnet-20", "resnext-29", "wide-resnet-16-4"}
    assert known_registry().problems == []
    for name in ours:
        defense: Defense = known_registry().find("defense", name).value
        assert not defense.quick and defense.recipe is not None
        surrogate: Defense = known_registry().find("defense", defense.surrogate).value
        assert set(defense.datasets) <= set(surrogate.datasets), (
            "transfer attacks query the surrogate"
        )


def test_the_recipes_page_states_the_trained_numbers() -> None:
    page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text()
    table = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `cifar-")]
    stated = {row[0].strip(" `"): [cell.strip() for cell in row] for row in table if len(row) == 8}
    assert set(stated) == {"cifar-base", *REAL}
    for name, (_, _, _, epochs, rate, schedule, decay, gradients) in stated.items():
        recipe = recipe_named(name)
        assert (int(epochs), float(rate), schedule) == (recipe.epochs, recipe.rate, recipe.schedule)
        assert float(decay) == recipe.weight_decay and recipe.batch == 128
        inner = recipe.inner
        steps = (
            resolve_inner_attack(known_registry(), inner).value.steps
            if isinstance(inner, InnerAttack)
            else 0
        )
        assert int(gradients) == steps + 1


# --- a short training on images --------------------------------------------------------------


@cache
def photographs() -> Dataset:
    """CIFAR-10 with its first 256 training images."""
    if not (datasets.data_folder() / "cifar-10-batches-py").is_dir():
        pytest.skip("BENCH_DATA names no folder with cifar-10-batches-py")
    return first_of(known_registry().datasets["cifar10"].value, FEW)


def narrow(name: str) -> Registry:
    """The recipe on a narrow network for two epochs."""
    registry = Registry.load(Path("no-submissions"))
    registration: Registration[Defense] = registry.find("defense", name)
    short = dataclasses.replace(
        recipe_named(name), model=partial(preact_resnet18, width=4), epochs=2, batch=64
    )
    value = dataclasses.replace(registration.value, recipe=short)
    registry.defenses[name] = dataclasses.replace(registration, value=value)
    return registry


class Killed(BaseException):
    """Ends training in the middle of a batch, like a killed process."""


def killed_after(batches: int) -> Callable[[], None]:
    left = iter(range(batches))

    def beat() -> None:
        if next(left, None) is None:
            raise Killed

    return beat


@pytest.mark.row("D01", "D08", "D13", "D17")
@pytest.mark.parametrize("name", REAL)
def test_each_recipe_trains_on_images_and_resumes_to_the_same_weights(
    name: str, tmp_path: Path
) -> None:
    registry, few = narrow(name), photographs()
    history: list[EpochReport] = []
    digest = train_weights(registry, name, few, folder=tmp_path / "whole", progress=history.append)
    assert [entry.epoch for entry in history] == [1, 2]
    assert history[1].loss < history[0].loss < 1.5 * math.log(10)
    assert [entry.gradients for entry in history] == [REAL[name] * FEW] * 2
    with pytest.raises(Killed):
        train_weights(
            registry, name, few, folder=tmp_path / "cut", heartbeat=killed_after(FEW // 64 + 2)
        )
    assert list((tmp_path / "cut" / "training").iterdir()), "the first epoch was kept"
    assert train_weights(registry, name, few, folder=tmp_path / "cut") == digest


def test_the_loss_of_fast_training_is_that_of_pgd_training() -> None:
    model, x = mlp((1, 8, 8), 10), pictures(8, (1, 8, 8))
    training_batch = TrainingBatch(model, x, torch.arange(8), adv=x.flip(0))
    fast, pgd = (recipe_named(name).loss for name in ("cifar-fast", "cifar-pgd"))
    assert fast is not None and pgd is not None
    assert torch.equal(fast(training_batch), pgd(training_batch))
    assert not torch.equal(fast(training_batch), pgd(training_batch._replace(adv=x)))
