"""Planted cases: dishonest ones are caught, honest ones are not accused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from bench.data import datasets
from bench.registry.registry import Registry
from bench.threats.norms import Linf
from bench.training.tasks import build_trained
from tests.planted import oracle
from tests.planted.networks import EPS, LINEAR
from tests.planted.playing import installed, load_registry, play
from tests.planted.plugin import CASES

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
"""One honest case is a traced network; an exception in its place would accuse it."""
BY_NAME = {case.name: case for case in CASES}

QUICK_EXAMPLES = 64
QUICK_ATTACKS = ("pgd", "pgd-margin")
CAUGHT_BY = {
    "argmax": "zero-gradients",
    "wrong-sign": "gradient-agrees",
    "batch-mean": "batch-independent",
    "noise": "deterministic",
    "farther": "iterates-stay-inside",
    "batch-scaled": "rows-are-independent",
}
"""Case -> a check that must fire."""


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with installed():
        yield load_registry()


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_dishonest_one_is_caught_by_the_check_for_it(registry: Registry, name: str) -> None:
    played = play(BY_NAME[f"planted-{name}"], registry, QUICK_EXAMPLES, QUICK_ATTACKS)
    assert played.caught
    assert CAUGHT_BY[name] in [*played.fired, *played.refused]


@pytest.mark.parametrize("name", ["cnn", "linear", "constant-1e3", "traced"])
def test_an_honest_one_is_not_accused_and_ends_at_the_truth(registry: Registry, name: str) -> None:
    played = play(BY_NAME[f"planted-{name}"], registry, QUICK_EXAMPLES, QUICK_ATTACKS)
    assert (played.caught, played.verdict, played.fired, played.refused) == (False, "sound", [], [])
    assert abs(played.ours - played.truth) <= 0.05


def test_the_oracle_is_exact_for_a_linear_model(registry: Registry) -> None:
    dataset = registry.find("dataset", "digits").value
    module = build_trained(registry, LINEAR, dataset).build()
    chosen = datasets.first_examples(dataset, 128)
    x, y = chosen.tensor(), torch.from_numpy(chosen.labels.copy())
    certifier = registry.find("certifier", "linear-exact").value
    certified = certifier.certify(module, x, y, Linf(EPS))
    assert torch.equal(oracle.robust(module, x, y, float(EPS)), certified)
    assert 0 < int(certified.sum()) < len(y)


def test_the_oracle_of_other_models_finds_what_the_exact_one_finds(registry: Registry) -> None:
    dataset = registry.find("dataset", "digits").value
    module = build_trained(registry, LINEAR, dataset).build()
    chosen = datasets.first_examples(dataset, 64)
    x, y = chosen.tensor(), torch.from_numpy(chosen.labels.copy())
    exact = oracle.robust(module, x, y, float(EPS))
    found = oracle.robust(torch.nn.Sequential(module), x, y, float(EPS))
    assert not (exact & ~found).any()
    assert int((found & ~exact).sum()) <= 1


@pytest.mark.slow
def test_every_case(registry: Registry) -> None:
    """Two attacks decide most cases; the others meet the whole protocol with its follow-ups."""
    played = [
        play(case, registry, QUICK_EXAMPLES, QUICK_ATTACKS, until_caught=True) for case in CASES
    ]
    fired = Counter(name for p in played if p.group for name in (*p.fired, *p.refused))
    assert len([name for name in fired if " " not in name]) >= 20
    open_cases = [p.name for p in played if bool(p.group) != p.caught]
    again = [play(BY_NAME[name], registry, 128) for name in open_cases]
    assert len(open_cases) <= 6
    assert [p.name for p in again if bool(p.group) != p.caught] == []
