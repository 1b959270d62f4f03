"""The defense builder: builds that repeat, digests, trained weights and weights files."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.data import datasets
from bench.plugin import Loader, Randomness
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder, NeedsTraining
from bench.training.tasks import build_trained
from plugins.datasets import torchvision_datasets
from tests.fixtures.small_defenses import (
    DIGITS,
    SHAPE,
    defense,
    linear,
    linear_weights,
    registry,
    small_recipe,
)

QUICK = small_recipe(epochs=1)


def plain(loader: Loader) -> nn.Module:
    """A module without weights of its own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, loader.classes, bias=False))


def on_base(loader: Loader) -> nn.Module:
    """A model on top of the defense called base."""
    return nn.Sequential(nn.Hardtanh(0, 1), loader.defense("base"))


def builder_of(known: Registry, name: str, folder: Path) -> DefenseBuilder:
    """The builder of a defense on the digits."""
    return DefenseBuilder(known, name, DIGITS, folder)


# --- building --------------------------------------------------------------------------------


def test_a_build_without_weights_names_the_defense_to_train(tmp_path: Path) -> None:
    known = registry(defense("base", QUICK), defense("upper", build=on_base))
    with pytest.raises(NeedsTraining, match=r"base has no weights .* `bench train base`") as error:
        builder_of(known, "upper", tmp_path).build()
    assert error.value.name == "base"
    assert len(error.value.recipe) == 64


def test_build_trained_trains_each_needed_defense_once(tmp_path: Path) -> None:
    known = registry(defense("base", QUICK), defense("upper", build=on_base))
    reports: list[str] = []
    ready = build_trained(
        known, "upper", DIGITS, tmp_path, progress=lambda name: lambda _: reports.append(name)
    )
    assert reports == ["base"]
    x = datasets.first_examples(DIGITS, 64).tensor()
    base = builder_of(known, "base", tmp_path).build()
    assert torch.equal(ready.build()(x), base(x))
    build_trained(
        known, "upper", DIGITS, tmp_path, progress=lambda name: lambda _: reports.append(name)
    )
    assert reports == ["base"]


def test_a_built_model_is_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    known = registry(
        defense("base", build=lambda loader: nn.Sequential(nn.Dropout(0.5), plain(loader)))
    )
    module = builder_of(known, "base", tmp_path).build()
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_random_draws_of_a_build_repeat_and_differ_between_defenses(tmp_path: Path) -> None:
    known = registry(defense("a", build=plain), defense("b", build=plain))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = builder_of(known, "a", tmp_path).build()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second = builder_of(known, "a", tmp_path).build()
    other = builder_of(known, "b", tmp_path).build()
    assert torch.equal(first.state_dict()["1.weight"], second.state_dict()["1.weight"])
    assert not torch.equal(first.state_dict()["1.weight"], other.state_dict()["1.weight"])


def test_a_bpda_approximation_is_built_only_where_one_is_declared(tmp_path: Path) -> None:
    known = registry(defense("base", build=plain), defense("other", build=plain, bpda=on_base))
    assert builder_of(known, "base", tmp_path).bpda() is None
    loader = builder_of(known, "other", tmp_path)
    found = loader.bpda()
    assert isinstance(found, nn.Module)
    assert not any(part.training for part in found.modules())


def test_a_build_that_gives_no_module_is_the_plugins_fault(tmp_path: Path) -> None:
    known = registry(defense("base", build=lambda loader: torch.relu))
    with pytest.raises(PluginError, match=r"base built .*; a torch\.nn\.Module was expected"):
        builder_of(known, "base", tmp_path).build()


def test_defenses_that_build_on_each_other_are_refused(tmp_path: Path) -> None:
    known = registry(
        defense("a", build=lambda loader: loader.defense("b")),
        defense("b", build=lambda loader: loader.defense("a")),
    )
    with pytest.raises(PluginError, match="a builds on b builds on a"):
        builder_of(known, "a", tmp_path).build()


def test_a_defense_for_other_data_is_refused(tmp_path: Path) -> None:
    known = registry(defense("base", build=plain, datasets=("mnist",)))
    with pytest.raises(BenchError, match="no defense for digits; it declares mnist"):
        builder_of(known, "base", tmp_path)


def test_trained_weights_without_a_recipe_are_an_error(tmp_path: Path) -> None:
    known = registry(defense("base", build=lambda loader: loader.trained(plain(loader))))
    with pytest.raises(BenchError, match="base declares no recipe"):
        builder_of(known, "base", tmp_path).build()


# --- the digest of a defense -----------------------------------------------------------------


def digest(known: Registry, name: str, folder: Path) -> str:
    """The digest of a defense whose weights may have to be trained first."""
    return build_trained(known, name, DIGITS, folder).digest


def test_the_digest_does_not_depend_on_the_order_of_builds(tmp_path: Path) -> None:
    known = registry(
        defense("base", QUICK), defense("upper", build=on_base, bpda=lambda s: s.defense("base"))
    )
    first = digest(known, "upper", tmp_path)
    reverse = builder_of(known, "upper", tmp_path)
    reverse.bpda()
    reverse.build()
    assert reverse.digest == first
    assert builder_of(known, "upper", tmp_path).digest == first


def test_source_name_weights_and_declared_draws_are_in_the_digest(tmp_path: Path) -> None:
    base = defense("base", QUICK)
    found = [
        digest(registry(base), "base", tmp_path / "a"),
        digest(registry(base, sources={"base": "changed"}), "base", tmp_path / "b"),
        digest(registry(defense("other", QUICK)), "other", tmp_path / "c"),
        digest(registry(defense("base", replace(QUICK, seed=1))), "base", tmp_path / "d"),
        digest(registry(replace(base, randomness=Randomness(3))), "base", tmp_path / "a"),
    ]
    assert len(set(found)) == len(found)
    assert digest(registry(replace(base, summary="a", cite="b")), "base", tmp_path / "a") in found


def test_rows_of_a_noise_group_are_in_the_digest_of_a_random_defense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_base = defense("base", QUICK)
    random = replace(plain_base, randomness=Randomness(3))
    before = [digest(registry(base), "base", tmp_path) for base in (plain_base, random)]
    monkeypatch.setattr("bench.training.defense_builder.noise_rows", lambda _: 256)
    after = [digest(registry(base), "base", tmp_path) for base in (plain_base, random)]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_what_a_defense_builds_on_is_in_its_digest(tmp_path: Path) -> None:
    upper = defense("upper", build=on_base)
    with_bpda = defense("upper", build=plain, bpda=on_base)
    for one in (upper, with_bpda):
        first = digest(registry(one, defense("base", QUICK)), "upper", tmp_path)
        other = replace(QUICK, seed=1)
        assert digest(registry(one, defense("base", other)), "upper", tmp_path) != first


def test_a_weights_file_is_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    known = registry(
        defense("base", build=lambda loader: loader.weights(plain(loader), "own.safetensors"))
    )
    found = []
    for value in (1.0, 2.0):
        weights = {"1.weight": torch.full((10, 64), value)}
        safetensors.torch.save_file(weights, tmp_path / "own.safetensors")
        found.append(builder_of(known, "base", tmp_path).digest)
    assert found[0] != found[1]


# --- files -----------------------------------------------------------------------------------


def test_weights_files_are_looked_up_beside_the_plugin_before_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, stored = tmp_path / "entry", tmp_path / "data"
    monkeypatch.setenv("BENCH_DATA", str(stored))
    known = registry(
        defense(
            "base",
            build=lambda loader: loader.weights(
                linear(loader.shape, loader.classes), "w.safetensors"
            ),
        )
    )
    known.defenses["base"] = replace(known.defenses["base"], folder=beside)
    with pytest.raises(
        UnavailableError, match=r"base needs the weights w\.safetensors.*set BENCH_DATA"
    ):
        builder_of(known, "base", tmp_path).build()
    for value, place in ((1, stored / "weights"), (2, stored), (3, beside)):
        place.mkdir(exist_ok=True, parents=True)
        weights = linear_weights() | {"1.bias": torch.full((10,), float(value))}
        safetensors.torch.save_file(weights, place / "w.safetensors")
        module = builder_of(known, "base", tmp_path).build()
        assert float(module.state_dict()["1.bias"][0]) == value


def test_a_file_of_that_name_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    content = safetensors.torch.save(linear_weights())
    (tmp_path / "w.safetensors").write_bytes(content)

    def filled(wanted: str) -> nn.Module:
        build = partial(
            DefenseBuilder.weights, module=linear(SHAPE, 10), file="w.safetensors", sha256=wanted
        )
        return builder_of(registry(defense("base", build=build)), "base", tmp_path).build()

    own = sha256(content).hexdigest()
    assert torch.equal(filled(own).state_dict()["1.bias"], linear_weights()["1.bias"])
    with pytest.raises(
        UnavailableError, match=rf"not the weights file .* begins with {own[:12]}, not 0"
    ):
        filled("0" * 64)


@pytest.mark.parametrize(
    "file", ["../w.safetensors", "/tmp/w.safetensors", "a/w.safetensors", "..", "", "w.pt"]
)
def test_weights_are_named_by_file_and_never_by_path(file: str, tmp_path: Path) -> None:
    known = registry(defense("base", build=lambda loader: loader.weights(plain(loader), file)))
    with pytest.raises(PluginError, match=r"name a \.safetensors file, no path"):
        builder_of(known, "base", tmp_path).build()


def test_published_weights_have_their_published_accuracy(tmp_path: Path) -> None:
    """98.2 % of MNIST's test half, as published (arXiv:1711.00851)."""
    folder = Path(os.environ.get("BENCH_DATA", ""))
    file = "convex-mnist-linf-0.1.safetensors"
    if "BENCH_DATA" not in os.environ or not (folder / "MNIST").exists():
        pytest.skip("BENCH_DATA names no folder that holds MNIST")
    if not any((place / file).exists() for place in (folder, folder / "weights")):
        pytest.skip(f"{file} is not in BENCH_DATA")
    mnist = {dataset.name: dataset for dataset in torchvision_datasets.bench_datasets()}["mnist"]
    network = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    convex = defense(
        "convex", build=lambda loader: loader.weights(network, file), datasets=("mnist",)
    )
    module = DefenseBuilder(registry(convex), "convex", mnist, tmp_path).build()
    examples = datasets.first_examples(mnist, 10_000)
    answers = torch.cat([module(x).argmax(1) for x in torch.split(examples.tensor(), 1000)])
    assert int((answers.numpy() == examples.labels).sum()) == 9820
