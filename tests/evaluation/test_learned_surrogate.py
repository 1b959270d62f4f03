"""Transfer from a surrogate that is learned from a defense's labels, as cells of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.core.outcomes import Outcomes, Verdict
from bench.evaluation import plan
from bench.evaluation.built_defense import RunSettings
from bench.evaluation.cell_player import CellPlayer
from bench.evaluation.defense_cache import DefenseCache
from bench.evaluation.learned_surrogate import learned_surrogate
from bench.evaluation.plan import Selection
from bench.registry.registry import Registry
from bench.training.label_surrogate import LIGHT, STRONG, LabelSurrogateRecipe

SHORT = LabelSurrogateRecipe("short", epochs=2)
COUNT = 96


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


def cache_of(registry: Registry, *defenses: str) -> tuple[DefenseCache, list[plan.PlannedPair]]:
    selection = Selection(("digits-linf",), defenses, ("transfer-learned",), examples=COUNT)
    settings = RunSettings(torch.device("cpu"), 64)
    cache = DefenseCache(registry=registry, selection=selection, settings=settings)
    return cache, plan.plan_pairs(registry, selection)


@pytest.fixture(scope="module")
def transferred(registry: Registry) -> dict[str, Outcomes]:
    """The outcomes of a network, and of the same one with one-hot answers, by defense."""
    cache, pairs = cache_of(registry, "undefended", "argmax-only")
    found = {}
    for pair in pairs:
        built = cache.defense(pair.defense, pair.threat)
        found[pair.defense.name] = CellPlayer().outcomes(pair, built, cache.surrogate(pair))
    return found


def broken(outcomes: Outcomes) -> int:
    return int((outcomes.verdict == Verdict.BROKEN).sum())


def test_labels_alone_break_a_network_that_hides_everything_else(
    transferred: dict[str, Outcomes],
) -> None:
    """Both have the same labels, so the surrogate and its adversarial examples are the same."""
    plain, hidden = transferred["undefended"], transferred["argmax-only"]
    assert broken(plain) > 0.75 * COUNT
    assert np.array_equal(plain.verdict, hidden.verdict)


def test_the_digest_is_known_before_anything_is_learned(registry: Registry) -> None:
    cache, (pair,) = cache_of(registry, "linear")
    built = cache.defense(pair.defense, pair.threat)
    reports: list[str] = []
    planned = learned_surrogate(built, pair.threat, SHORT, reports.append)
    assert planned.digest and not reports
    other = replace(pair.threat, ball=pair.threat.ball.scaled(2))
    for recipe, same in ((LIGHT, True), (STRONG, False)):
        digests = [learned_surrogate(built, t, recipe, print).digest for t in (pair.threat, other)]
        assert (digests[0] == digests[1]) is same
    assert not reports


def test_each_defense_has_a_surrogate_of_its_own(registry: Registry) -> None:
    cache, pairs = cache_of(registry, "linear", "undefended")
    digests = {surrogate.digest for pair in pairs if (surrogate := cache.surrogate(pair))}
    assert len(digests) == 2


def test_a_random_defense_answers_by_vote(registry: Registry) -> None:
    cache, (pair,) = cache_of(registry, "noise-first")
    built = cache.defense(pair.defense, pair.threat)
    labels = built.label_function()
    votes = labels(built.x[:])
    assert votes.shape == (COUNT,) and votes.dtype == torch.int64
    assert float((votes == built.y).double().mean()) > 0.8
