"""Published weights reproduce their published figures on the whole test sets."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.core.errors import UnavailableError
from bench.data import datasets
from bench.engine.problem import attack_once
from bench.plugin import Linf
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from plugins.defenses import resnet2b
from plugins.defenses.convex_polytope import network


class Published(NamedTuple):
    """A network with its published clean accuracy."""

    defense: str
    dataset: str
    clean: float
    """Share of the 10,000 test images, as published or measured to the given digits."""
    digits: float
    """Half a unit of the last digit given."""


KNOWN = [
    Published("convex-mnist", "mnist", 0.982, 0.0005),
    Published("resnet2b-cifar10", "cifar10", 0.6925, 0.00005),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.load(tmp_path_factory.mktemp("submissions"))


def network_and_images(
    registry: Registry, defense: str, name: str
) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, every test image and every label; skips where a file is missing."""
    dataset = registry.datasets[name].value
    place = datasets.data_folder()
    if not place.is_dir() or not any(place.iterdir()):
        pytest.skip(f"{name} is not in {place}; set BENCH_DATA to a folder that has it")
    try:
        model = DefenseBuilder(registry, defense, dataset).build()
        examples = datasets.first_examples(dataset, dataset.test_size)
    except UnavailableError as error:
        assert "not the weights file" not in str(error)
        pytest.skip(str(error))
    return model, examples.tensor(), torch.tensor(examples.labels)


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[n] bool, without a graph."""
    with torch.no_grad():
        answers = [model(part).argmax(1) for part in torch.split(x, 1000)]
    return torch.cat(answers) == y


@pytest.mark.parametrize("known", KNOWN, ids=[known.defense for known in KNOWN])
def test_clean_accuracy_is_the_published_one(registry: Registry, known: Published) -> None:
    model, x, y = network_and_images(registry, known.defense, known.dataset)
    assert len(x) == 10_000
    share = float(right(model, x, y).double().mean())
    assert share == pytest.approx(known.clean, abs=known.digits + 1e-9)


def test_the_fashion_network_has_the_accuracy_measured_before(registry: Registry) -> None:
    model, x, y = network_and_images(registry, "convex-fashion", "fashion-mnist")
    share = float(right(model, x, y).double().mean())
    assert 0.77 < share < 0.81, "79.3 % of a thousand images was measured"


def attacked(
    registry: Registry, model: nn.Module, x: Tensor, y: Tensor, ball: Linf, attack: str
) -> float:
    """The share of all images that one attack leaves correct."""
    found = registry.attacks[attack].value
    robust = []
    for part in torch.split(torch.arange(len(x)), 500):
        clean, label = x[part], y[part]
        adv = attack_once(found, model, clean, label, ball, seed=0, example=part)
        assert ball.contains(adv, clean).all()
        robust.append(right(model, clean, label) & right(model, adv, label))
    return float(torch.cat(robust).double().mean())


@pytest.mark.slow
def test_certified_accuracy_is_published_and_below_accuracy_under_pgd(
    registry: Registry,
) -> None:
    model, x, y = network_and_images(registry, "convex-mnist", "mnist")
    share = attacked(registry, model, x, y, Linf(Fraction(1, 10)), "pgd")
    assert 0.942 <= share <= 0.961


@pytest.mark.slow
def test_verified_accuracy_is_published_and_below_accuracy_under_pgd(
    registry: Registry,
) -> None:
    model, x, y = network_and_images(registry, "resnet2b-cifar10", "cifar10")
    share = attacked(registry, model, x, y, Linf(Fraction(2, 255)), "pgd")
    assert 0.2688 <= share <= 0.57


@pytest.mark.parametrize(
    ("name", "dataset", "network", "file"),
    [
        ("convex-mnist", "mnist", network, "convex-mnist-linf-0.1"),
        (
            "convex-fashion",
            "fashion-mnist",
            network,
            "convex-fashion-mnist-linf-0.1",
        ),
        ("resnet2b-cifar10", "cifar10", resnet2b.ResNet2b, "resnet2b-cifar10-linf-2"),
    ],
)
def test_other_weights_under_the_published_name_are_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, dataset: str, network: Callable[[], nn.Module], file: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    safetensors.torch.save_file(network().state_dict(), tmp_path / f"{file}.safetensors")
    loader = DefenseBuilder(registry, name, registry.datasets[dataset].value)
    with pytest.raises(UnavailableError, match=f"not the weights file that {name} means"):
        loader.build()


def test_without_the_file_the_error_names_the_folders_searched(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    loader = DefenseBuilder(registry, "convex-mnist", registry.datasets["mnist"].value)
    with pytest.raises(UnavailableError, match=r"convex-mnist-linf-0\.1"):
        loader.build()
