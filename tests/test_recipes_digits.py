"""What capacity, dropout, augmentation and half precision do to robustness."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import data
from bench.plugin import Recipe
from bench.registry import Registry
from bench.shelf import prepared
from plugins.attacks.pgd import PGD
from plugins.defenses import _residual as residual
from tests.lessons import DIGITS, defense, on_adv, on_clean, registry
from tests.protocol_dg import (
    SEVEN,
    accuracy,
    adversarial,
    attacked,
    first_of,
    held_out,
    mlp,
    taught,
)

pytestmark = pytest.mark.slow
FORTY = PGD(steps=40, rate=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dg")


def robust(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return accuracy(module, attacked(module, x, y), y)


@pytest.mark.row("D09", "E20")
def test_robustness_needs_capacity_a_small_network_collapses_to_one_answer(folder: Path) -> None:
    x, y = held_out()
    small, large = adversarial(folder, hidden=4), adversarial(folder, hidden=64)
    assert accuracy(taught(folder, hidden=4), x, y) > 0.4, "clean images are within its reach"
    assert len(small(x).argmax(1).unique()) <= 2 and accuracy(small, x, y) < 0.25
    assert accuracy(large, x, y) > 0.9 and robust(large, x, y) > 0.5
    assert accuracy(taught(folder, hidden=64), x, y) > 0.9
    assert robust(taught(folder, hidden=64), x, y) < 0.15, "capacity alone is no defense"


@pytest.mark.row("D09", "E20")
def test_more_width_is_more_robust_under_adversarial_training(folder: Path) -> None:
    x, y = held_out()
    held = [robust(adversarial(folder, hidden=width), x, y) for width in (4, 8, 64)]
    assert held[0] + 0.15 < held[1] < held[2] - 0.1


@pytest.mark.row("D02", "D04")
@pytest.mark.parametrize("name", ["cnn-dropout", "augmented"])
def test_neither_dropout_nor_augmentation_is_adversarial_training(name: str, folder: Path) -> None:
    known = Registry.load(folder / "no-submissions")
    x, y = held_out()
    module, plain, trained = (
        prepared(known, one, DIGITS, folder).build() for one in (name, "undefended", "pgd-training")
    )
    ball = known.threats["digits-linf"].value.ball
    left = {
        one: accuracy(found, attacked(found, x, y, ball, FORTY), y)
        for one, found in (("own", module), ("plain", plain), ("trained", trained))
    }
    assert accuracy(module, x, y) > 0.93
    assert left["own"] < left["plain"] + 0.1
    assert left["trained"] > left["own"] + 0.4


@pytest.mark.row("D18")
def test_half_precision_moves_no_point_in_judging_and_few_in_training(folder: Path) -> None:
    x, y = held_out()
    recipe = Recipe(partial(mlp), on_adv, SEVEN, epochs=60, batch=64)
    known = registry(defense("dg", recipe))
    exact = prepared(known, "dg", DIGITS, folder / "float32").build()
    mixed = prepared(known, "dg", DIGITS, folder / "bfloat16", mixed=True).build()
    whole = robust(exact, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert exact(x).dtype == torch.bfloat16, "the cast took place"
        assert abs(robust(exact, x, y) - whole) < 0.01
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert abs(robust(mixed, x, y) - whole) < 0.03
    assert not torch.equal(exact(x), mixed(x))


@pytest.mark.row("M01")
@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (partial(residual.resnet, depth=8), 0.05),
        (partial(residual.preresnet, depth=8), 0.05),
        (partial(residual.se_resnet, depth=8), 0.05),
        (partial(residual.resnext, depth=11, cardinality=8, width=4), 0.02),
        (partial(residual.wide_resnet, depth=10, widen=1), 0.05),
    ],
    ids=["resnet", "preresnet", "se-resnet", "resnext", "wide-resnet"],
)
def test_every_family_reads_digits_after_a_few_epochs(
    make: partial[nn.Module], rate: float, folder: Path
) -> None:
    recipe = Recipe(
        make, on_clean, epochs=4, batch=64, rate=rate, optimiser="sgd", schedule="cyclic"
    )
    x, y = held_out()
    name = make.func.__name__.replace("_", "-")
    module = prepared(registry(defense(name, recipe)), name, DIGITS, folder).build()
    assert accuracy(module, x, y) > 0.85


@pytest.mark.row("D01", "M04")
def test_the_undefended_network_for_images_reads_clothes_and_falls_to_pgd(folder: Path) -> None:
    if not (data.folder() / "FashionMNIST").is_dir():
        pytest.skip("BENCH_DATA names no folder with FashionMNIST")
    known = Registry.load(folder / "no-submissions")
    whole = known.datasets["fashion-mnist"].value
    few = first_of(whole, 2048)
    module = prepared(known, "undefended-images", few, folder / "clothes").build()
    examples = data.examples(whole, 200)
    x, y = examples.tensor(), torch.tensor(examples.labels)
    ball = known.threats["fashion-linf"].value.ball
    assert accuracy(module, x, y) > 0.7
    assert accuracy(module, attacked(module, x, y, ball), y) < 0.1
