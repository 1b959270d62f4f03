"""Attacks of other libraries: counted, reproducible, verified, and missing without the library."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.contract.fixtures import ModelState, RandomState
from bench.core.errors import BenchError, PluginError
from bench.engine.cell_spec import CellSpec
from bench.engine.problem import BATCH_UNIT
from bench.plugin import L1, L2, Access, Linf, PerturbationSet, Traits
from bench.registry.cards import attack_digest
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.threats.access import Budget
from plugins.external import _library_attack
from tests.engine.external_cell import cell, counting_hooks, run_cell, same
from tests.fixtures.known_models import digits, run_and_judge, small_cnn

BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(51, 255)), "L2": L2(Fraction(3, 2)), "L1": L1(Fraction(4)),
}  # fmt: skip
NARROW: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(1, 10**4)), "L2": L2(Fraction(1, 10**4)), "L1": L1(Fraction(1, 10**4)),
}  # fmt: skip
LIBRARIES = ("foolbox", "art", "adv_lib")


@cache
def registry() -> Registry:
    return Registry.load()


def library_attacks() -> list[str]:
    """The names registered here; none where no library is installed."""
    registrations = registry().attacks.items()
    return [
        name
        for name, registration in registrations
        if registration.module.startswith("plugins.external.")
    ]


def find(name: str) -> Registration[Any]:
    return registry().find("attack", name)


every = pytest.mark.parametrize(
    "name",
    library_attacks()
    or [pytest.param("", marks=pytest.mark.skip("no library of the extra is here"))],
)


@cache
def right() -> tuple[Tensor, Tensor]:
    """The first 32 digits that the small network classifies correctly."""
    x, y = digits(64)
    sure = (small_cnn()(x).argmax(1) == y).nonzero()[:BATCH_UNIT, 0]
    return x[sure], y[sure]


def cell_spec(
    name: str, balls: dict[str, PerturbationSet], model: nn.Module | None = None
) -> CellSpec:
    """The attack's cell on correctly classified images: few, where it runs one by one."""
    attack = find(name).value
    n = 2 if Traits.of(attack).rows == 1 else BATCH_UNIT
    x, y = right()
    ball = balls[attack.norms[0]]
    spec = cell(attack, model or small_cnn(), n, ball)
    return dataclasses.replace(
        spec,
        x=x[:n],
        y=y[:n],
        reached_on_clean=torch.zeros(n, dtype=torch.bool),
        clean_logits=spec.clean_logits[:n],
    )


@every
def test_counts_equal_those_of_independent_hooks(name: str) -> None:
    """In a ball so small that the library makes its whole run."""
    model = copy.deepcopy(small_cnn())
    spec = cell_spec(name, NARROW, model)
    rows = counting_hooks(model)
    found = run_cell(spec)
    checks = int(found.final_checks.sum())
    assert checks == len(spec.x) and (found.step == -1).all()
    assert rows["forward"] == int(found.forwards.sum()) + checks
    assert rows["backward"] == int(found.gradients.sum())
    white = find(name).value.needs is Access.GRADIENTS
    assert (rows["backward"] > 0) == white and int(found.forwards.min()) > 0


@every
def test_it_breaks_digits_and_changes_no_state(name: str) -> None:
    model = copy.deepcopy(small_cnn())
    state, random_state = ModelState.of(model), RandomState.snapshot()
    x, y = (part[: 8 if Traits.of(find(name).value).rows == 1 else BATCH_UNIT] for part in right())
    attack = find(name).value
    result = run_and_judge(attack, model, x, y, BALLS[attack.norms[0]], access=attack.needs)
    assert int(result.broken.sum()) >= 2
    assert (result.distance[result.broken] <= BALLS[attack.norms[0]].radius + 1e-5).all()
    assert state.changed() == [] and random_state.changed() == []


@every
def test_the_same_seed_gives_the_same_images(name: str) -> None:
    spec = cell_spec(name, BALLS)
    first = run_cell(spec)
    torch.rand(5)
    assert same(first, run_cell(spec))


@every
def test_a_budget_stops_it(name: str) -> None:
    spec = cell_spec(name, NARROW)
    found = run_cell(dataclasses.replace(spec, budget=Budget(queries=12, gradients=12)))
    assert 0 < int(found.forwards.max()) <= 12 and int(found.gradients.max()) <= 12


@pytest.mark.parametrize(
    "name", [name for name in library_attacks() if "hop" in name or "sign" in name]
)
def test_a_label_only_attack_uses_at_most_1000_queries(name: str) -> None:
    attack = find(name).value
    x, y = (part[:2] for part in right())
    ball = NARROW[attack.norms[0]]
    result = run_and_judge(
        attack, small_cnn(), x, y, ball, access=Access.LABELS, budget=Budget(queries=1000)
    )
    assert not result.broken.any() and 900 < int(result.forwards.max()) <= 1000


def test_the_images_are_those_of_foolbox_itself() -> None:
    foolbox = pytest.importorskip("foolbox", reason="the extra `peers` is not installed")
    x, y = right()
    model = foolbox.PyTorchModel(small_cnn(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.DDNAttack(steps=100)
    own = attack.run(model, x, foolbox.Misclassification(y), early_stop=None)
    assert torch.equal(run_cell(cell_spec("foolbox-ddn", NARROW)).image, own)


def test_the_images_are_those_of_adversarial_library_itself() -> None:
    attacks = pytest.importorskip("adv_lib.attacks", reason="the extra `peers` is not installed")
    x, y = right()
    own = attacks.fmn(small_cnn(), x, y, norm=float("inf"), steps=100)
    assert torch.equal(run_cell(cell_spec("adv-lib-fmn-linf", NARROW)).image, own)


def test_an_unknown_option_gives_a_plugin_error() -> None:
    pytest.importorskip("foolbox", reason="the extra `peers` is not installed")
    attack = dataclasses.replace(find("foolbox-ddn").value, options={"pace": 3})
    random_state = RandomState.snapshot()
    with pytest.raises(PluginError, match="foolbox-ddn failed in its own run: TypeError"):
        run_and_judge(attack, small_cnn(), *right(), BALLS["L2"])
    assert random_state.changed() == []


@every
def test_the_digest_depends_on_the_version_of_the_library(name: str) -> None:
    here = find(name)
    other = dataclasses.replace(here, value=dataclasses.replace(here.value, version="0"))
    assert attack_digest(other) != attack_digest(here)


def test_attacks_of_a_missing_library_are_not_listed_and_name_it_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_library_attack, "version", lambda distribution: "")
    found = Registry.load()
    assert found.problems == [] and not [n for n in found.attacks if n.startswith("foolbox")]
    assert not [card for card in found.cards() if card.name.startswith(("foolbox", "art-", "adv-"))]
    with pytest.raises(
        BenchError,
        match="'foolbox-ead' needs foolbox, which is not installed; install the extra: uv sync "
        "--extra peers",
    ):
        found.find("attack", "foolbox-ead")


def test_listing_imports_no_library() -> None:
    program = (
        "import sys\nfrom bench.registry.registry import Registry\nRegistry.load()\n"
        f"print([name for name in {LIBRARIES!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
