"""The networks with published weights: the files, and cells of the published database again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from bench.core.errors import UnavailableError
from bench.engine.machine import this_machine
from bench.evaluation.reproduce import reproduce
from bench.plugin import Dataset
from bench.registry.registry import Registry
from bench.results.published import changed_code
from bench.store import Store
from bench.store.published import published_database
from bench.training.defense_builder import DefenseBuilder
from plugins.published import _weights
from plugins.published._weights import DIGESTS, published_digests, weights_file
from tests.tools.published import MOST_ALL_WEIGHTS, MOST_WEIGHTS, trained_names

URL = f"sqlite:///{published_database()}"
CHEAP = ("mnist-standard", "fashion-standard", "resnet2b-standard")

ROUNDED = 5
"""Of 500 examples, those that may differ on another processor class, which rounds differently."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


def files() -> list[Path]:
    return sorted(DIGESTS.parent.glob("*.safetensors"))


def test_each_file_has_its_digest_and_a_defense(registry: Registry) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files()}
    assert found == {weights_file(name): one for name, one in published_digests().items()}
    assert set(published_digests()) <= set(trained_names(registry))


def test_the_files_are_small() -> None:
    sizes = [path.stat().st_size for path in files()]
    assert max(sizes) <= MOST_WEIGHTS and sum(sizes) <= MOST_ALL_WEIGHTS


@pytest.mark.parametrize("name", sorted(published_digests()))
def test_each_network_loads_and_answers(name: str, registry: Registry) -> None:
    dataset = registry.find("dataset", registry.find("defense", name).value.datasets[0]).value
    module = DefenseBuilder(registry, name, dataset).build()
    images = torch.rand(5, *dataset.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = module(images)
    assert logits.shape == (5, len(dataset.classes)) and logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


def test_another_file_is_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = registry.find("dataset", "mnist").value
    other = tmp_path / "weights.toml"
    other.write_text(f'mnist-standard = "{"0" * 64}"\n')
    monkeypatch.setattr(_weights, "DIGESTS", other)
    with pytest.raises(UnavailableError, match="is not the weights file that mnist-standard means"):
        DefenseBuilder(registry, "mnist-standard", dataset).build()


def why_not_here(dataset: Dataset, defense: str, attack: str) -> str:
    """Why a published cell cannot be compared on this machine; empty where it can."""
    if dataset.problem:
        return f"no data: {dataset.problem}"
    changed = changed_code()
    if defense in changed.defenses or attack in changed.attacks:
        return "the code has changed since; `python -m tests.tools.published` makes them again"
    return ""


@pytest.mark.parametrize("defense", CHEAP)
def test_a_published_cell_has_the_same_outcomes_again(defense: str, registry: Registry) -> None:
    dataset = registry.find("dataset", registry.find("defense", defense).value.datasets[0]).value
    if reason := why_not_here(dataset, defense, "fgsm"):
        pytest.skip(reason)
    with Store.open(URL, read_only=True) as store:
        rows = [row for row in store.cells() if row.cell.defense == defense]
        (key,) = (row.key for row in rows if row.cell.attack == "fgsm")
        machines = store.machines([key])[key]
    here = this_machine(torch.device("cpu")).cpu_capability
    same_class = here in {one.cpu_capability for one in machines}
    before = published_database().read_bytes()
    again = reproduce(key, URL, "cpu", False)
    assert len(again["differ"]) <= (0 if same_class else ROUNDED), again["sentence"]
    assert "which are only read" in again["not_stored"]
    assert published_database().read_bytes() == before
