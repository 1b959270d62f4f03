"""Attacks use a declared BPDA approximation and the true gradient; neither hides the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import TRUE_GRADIENT_RESTART, Outcomes, Verdict
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.plan import Selection
from bench.plugin import Budget, Loader
from bench.registry.registry import Registry

COUNT = 64


class Constant(nn.Module):
    """Answers like the model, with a gradient that is zero everywhere."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return logits.detach() + 0 * images.flatten(1).sum(1, keepdim=True)


class Opposite(Constant):
    """Answers like the model, with a gradient of the opposite sign."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return 2 * logits.detach() - logits


class Quantised(Constant):
    """Rounds images to eight levels, so that its own gradient is zero."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module((images * 8).round() / 8)
        return logits


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry.without_submissions()
    plain = found.defenses["undefended"]

    def add(name: str, build: type[nn.Module] | None, bpda: type[nn.Module] | None) -> None:
        def wrapped(kind: type[nn.Module]) -> Callable[[Loader], nn.Module]:
            return lambda loader: kind(loader.defense("undefended"))

        def unchanged(loader: Loader) -> nn.Module:
            return loader.defense("undefended")

        made = replace(
            plain.value, name=name, recipe=None, build=wrapped(build) if build else unchanged,
            bpda=wrapped(bpda) if bpda else None,
        )  # fmt: skip
        found.defenses[name] = replace(plain, value=made)

    add("plain", None, None)
    add("useless", None, Constant)
    add("opposite", None, Opposite)
    add("quantised", Quantised, nn.Sequential)
    add("masked", Constant, nn.Sequential)
    return found


def played(registry: Registry, defense: str, attack: str, **rules: Any) -> Outcomes:
    selection = Selection(("digits-linf",), (defense,), (attack,), examples=COUNT)
    (pair,) = plan.plan_pairs(registry, selection)
    pair = replace(pair, threat=replace(pair.threat, **rules))
    settings = RunSettings(torch.device("cpu"), 32)
    cache = DefenseCache(registry=registry, selection=selection, settings=settings)
    return CellPlayer().outcomes(pair, cache.defense(pair.defense, pair.threat))


@pytest.mark.parametrize("defense", ["useless", "opposite"])
@pytest.mark.parametrize("attack", ["pgd", "fgsm", "pgd-margin"])
def test_a_useless_approximation_hides_nothing(
    registry: Registry, defense: str, attack: str
) -> None:
    plain, found = played(registry, "plain", attack), played(registry, defense, attack)
    broken = plain.verdict == Verdict.BROKEN
    assert broken.sum() > COUNT // 2
    assert (found.verdict[broken] == Verdict.BROKEN).all()


def test_restarts_of_the_true_gradient_have_numbers_of_their_own(registry: Registry) -> None:
    plain, found = played(registry, "plain", "pgd"), played(registry, "useless", "pgd")
    second = found.restart >= TRUE_GRADIENT_RESTART
    assert second.sum() > COUNT // 2
    assert np.array_equal(found.step[second], plain.step[second])
    assert np.array_equal(found.distance[second], plain.distance[second])
    # The first run makes all 40 steps of its one restart before the second one begins.
    assert np.array_equal(found.gradients[second], plain.gradients[second] + 40)


@pytest.mark.row("A14")
def test_an_approximation_that_works_is_used_first(registry: Registry) -> None:
    found = played(registry, "masked", "pgd")
    broken = found.verdict == Verdict.BROKEN
    assert broken.sum() > COUNT // 2
    assert set(found.restart[broken & (found.step > 0)].tolist()) == {0}


def test_each_example_has_one_outcome(registry: Registry) -> None:
    found = played(registry, "quantised", "pgd")
    assert found.item.tolist() == list(range(COUNT))
    assert (found.verdict == Verdict.BROKEN).sum() > COUNT // 2


def test_a_limited_budget_is_divided_between_both(registry: Registry) -> None:
    limited = played(registry, "useless", "pgd", budget=Budget(gradients=20))
    assert limited.gradients.max() <= 20
    assert (limited.verdict == Verdict.BROKEN).sum() > 0
