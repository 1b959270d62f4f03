"""Effects of capacity, dropout, augmentation and half precision on robustness."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.data import datasets
from bench.plugin import Recipe
from bench.registry.registry import Registry
from bench.training.tasks import build_trained
from plugins.defenses import _residual_blocks as residual
from plugins.defenses._losses import adversarial_loss, clean_loss
from tests.benchmarks.capacity import (
    EVALUATION,
    LINES,
    PAGE,
    TRAININGS,
    WIDTHS,
    capacity_curves,
    capacity_figure,
    capacity_page,
    plain,
    robust,
)
from tests.fixtures.images import accuracy, attacked, first_of, held_out
from tests.fixtures.protocol_dg import DigitsTestbed, pgd, recipe, testbed
from tests.fixtures.small_defenses import DIGITS, defense, registry

__all__ = ["testbed"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.mark.row("D09", "E20", "RP21")
def test_a_small_network_predicts_one_class_after_adversarial_training(
    testbed: DigitsTestbed,
) -> None:
    """With three hidden units a layer it learns from clean images but not from attacked ones."""
    small = [robust(testbed, 3, seed) for seed in range(3)]
    for module in small:
        assert len(module(testbed.x).argmax(1).unique()) <= 2 and testbed.clean(module) < 0.2
    assert sum(testbed.clean(plain(testbed, 3, seed)) for seed in range(3)) / 3 > 0.3


@pytest.mark.row("D09", "E20", "RP21")
def test_robustness_costs_more_width_than_clean_accuracy_does(testbed: DigitsTestbed) -> None:
    clean = sum(testbed.clean(plain(testbed, 6, seed)) for seed in range(3)) / 3
    trained = sum(testbed.clean(robust(testbed, 6, seed)) for seed in range(3)) / 3
    small = sum(testbed.robust(robust(testbed, 6, seed), EVALUATION) for seed in range(3)) / 3
    large = robust(testbed, 64)
    assert clean > 0.75 and trained < clean - 0.3
    assert testbed.clean(large) > 0.9 and testbed.robust(large, EVALUATION) > max(0.5, small + 0.25)
    assert testbed.robust(plain(testbed, 64), EVALUATION) < 0.15, "capacity alone is no defense"


@pytest.mark.row("E20", "RP21")
def test_the_figure_of_capacity_shows_each_training_over_the_width(
    testbed: DigitsTestbed,
) -> None:
    curves = capacity_curves(testbed, (3, 6, 64))
    trained, undefended = curves["PGD training"], curves["standard training"]
    for lines in (trained, undefended):
        clean, attacked_ = ([count.k for _, count in lines[name]] for name in ("clean", "PGD-10"))
        assert all(under <= without for under, without in zip(attacked_, clean, strict=True))
        assert clean[-1] > clean[0]
    assert trained["PGD-10"][-1][1].k > max(k.k for _, k in trained["PGD-10"][:-1])
    assert trained["PGD-10"][-1][1].k > undefended["PGD-10"][-1][1].k + 150
    panels = [axes for axes in capacity_figure(curves).axes if axes.axison]
    assert [axes.get_title() for axes in panels] == list(TRAININGS)
    assert all(axes.get_xscale() == "log" and len(axes.get_lines()) >= 2 for axes in panels)
    last = capacity_page(curves, 1).splitlines()[-1].split("|")[1:-1]
    expected = [curves[training][name][-1][1].k for training in TRAININGS for name in LINES]
    assert [cell.strip() for cell in last] == ["64", *(f"{k / 500:.1%}" for k in expected)]


@pytest.mark.row("E20", "RP21")
def test_the_page_shows_that_robustness_needs_more_width_than_accuracy() -> None:
    lines = re.findall(r"^\| \d.*\|$", PAGE.read_text(), re.MULTILINE)
    rows = [[float(cell.strip(" %")) for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in rows] == list(WIDTHS)
    plain_clean, _, robust_clean, robust_pgd = zip(*(row[1:] for row in rows), strict=True)
    assert all(row[2] < 15 for row in rows), "standard training leaves little at any width"
    assert plain_clean[0] - robust_clean[0] > 30 and plain_clean[1] - robust_clean[1] > 10
    assert robust_clean[-1] > 95 and robust_pgd[-1] > 60
    assert sorted(robust_pgd) == list(robust_pgd)


@pytest.mark.row("D02", "D04")
@pytest.mark.parametrize("name", ["cnn-dropout", "augmented"])
def test_neither_dropout_nor_augmentation_is_adversarial_training(name: str, folder: Path) -> None:
    known = Registry.load(folder / "no-submissions")
    x, y = held_out()
    module, plain, trained = (
        build_trained(known, one, DIGITS, folder).build()
        for one in (name, "undefended", "pgd-training")
    )
    ball = known.threats["digits-linf"].value.ball
    left = {
        one: accuracy(found, attacked(found, x, y, ball), y)
        for one, found in (("own", module), ("plain", plain), ("trained", trained))
    }
    assert accuracy(module, x, y) > 0.93
    assert left["own"] < left["plain"] + 0.1
    assert left["trained"] > left["own"] + 0.4


class Float32Logits(nn.Module):
    """A model whose logits are cast back to float32, as attacks need them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return logits.float()


@pytest.mark.row("D18")
def test_half_precision_changes_no_outcome_in_evaluation_and_few_in_training(folder: Path) -> None:
    x, y = held_out()
    known = registry(defense("dg", recipe(adversarial_loss, inner=pgd(7))))
    exact = build_trained(known, "dg", DIGITS, folder / "float32").build()
    mixed = build_trained(known, "dg", DIGITS, folder / "bfloat16", mixed=True).build()
    whole = accuracy(exact, attacked(exact, x, y), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert exact(x).dtype == torch.bfloat16, "the cast took place"
        adversarial = attacked(Float32Logits(exact), x, y)
        assert abs(accuracy(exact, adversarial, y) - whole) < 0.01
    assert all(weight.dtype == torch.float32 for weight in mixed.parameters())
    assert abs(accuracy(mixed, attacked(mixed, x, y), y) - whole) < 0.03
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
def test_every_residual_network_learns_digits_in_a_few_epochs(
    make: partial[nn.Module], rate: float, folder: Path
) -> None:
    made_by = Recipe(make, clean_loss, epochs=4, rate=rate, optimiser="sgd", schedule="cyclic")
    x, y = held_out()
    name = make.func.__name__.replace("_", "-")
    module = build_trained(registry(defense(name, made_by)), name, DIGITS, folder).build()
    assert accuracy(module, x, y) > 0.85


@pytest.mark.row("D01", "M04")
def test_the_undefended_image_network_learns_fashion_mnist_and_pgd_breaks_it(folder: Path) -> None:
    if not (datasets.data_folder() / "FashionMNIST").is_dir():
        pytest.skip("BENCH_DATA names no folder with FashionMNIST")
    known = Registry.load(folder / "no-submissions")
    whole = known.datasets["fashion-mnist"].value
    few = first_of(whole, 2048)
    module = build_trained(known, "undefended-images", few, folder / "clothes").build()
    x, y = held_out(200, whole)
    ball = known.threats["fashion-linf"].value.ball
    assert accuracy(module, x, y) > 0.7
    assert accuracy(module, attacked(module, x, y, ball), y) < 0.1
