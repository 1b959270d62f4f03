"""A model behind a nuisance: draws of each call, and attacks and verdicts over draws."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import bench
from bench.core.errors import BenchError
from bench.core.outcomes import Verdict
from bench.engine.model_access import SeededNoise
from bench.evaluation.nuisance_model import NuisanceModel, seen_through
from bench.evaluation.plan import Selection, single_pair
from bench.evaluation.trace import trace_attack
from bench.plugin import Nuisance
from bench.registry.registry import Registry
from tests.fixtures.known_models import digits, small_cnn

NUISANCE = Nuisance(shift=1.0, degrees=15.0, brightness=0.2, noise=0.1, draws=4)


@cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """64 digits with the labels that the network predicts."""
    x, _ = digits(64)
    return x, small_cnn()(x).argmax(1)


def test_calls_have_draws_of_their_own_which_role_and_group_repeat() -> None:
    model = NuisanceModel(NUISANCE, nn.Identity())
    x = images()[0]
    noise = SeededNoise(0, "test", x.device)

    def calls(group: int) -> list[torch.Tensor]:
        noise.begin(group)
        found = []
        for _ in range(3):
            with noise.scope():
                found.append(model(x))
        return found

    first, again, other = calls(0), calls(0), calls(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    every = [*first, *other]
    assert len({one.numpy().tobytes() for one in every}) == 6
    assert (first[0] != first[1]).flatten(1).any(1).sum() > 60


def test_without_a_nuisance_it_is_the_model_itself() -> None:
    module = nn.Identity()
    assert seen_through(None, module) is module


@pytest.mark.row("P06", "G14")
@pytest.mark.parametrize("rule", ["", "next"])
def test_behind_the_identity_an_attack_makes_the_same_images_to_the_bit(rule: str) -> None:
    x, y = images()
    plain = bench.attack(small_cnn(), x, y, "pgd", eps="1/5", target_rule=rule)
    behind = bench.attack(
        small_cnn(), x, y, "pgd", eps="1/5", target_rule=rule, nuisance=Nuisance()
    )
    assert torch.equal(plain.images, behind.images) and 0 < int(plain.success.sum()) < 65
    assert torch.equal(plain.success, behind.success)
    assert set(behind.outcomes.share.tolist()) <= {0.0, 1.0}
    assert (behind.outcomes.share == 1).tolist() == behind.success.tolist()


@pytest.mark.row("G14")
@pytest.mark.parametrize("share", [0.4, 0.75])
def test_an_example_is_broken_on_its_share_of_the_fixed_draws(share: float) -> None:
    x, y = images()
    nuisance = Nuisance(**NUISANCE.parameters() | {"share": share})
    found = [
        bench.attack(small_cnn(), x, y, "pgd", eps="1/20", steps=5, nuisance=nuisance)
        for _ in range(2)
    ]
    kept = found[0].outcomes.share
    assert torch.equal(found[0].images, found[1].images)
    assert kept.tolist() == found[1].outcomes.share.tolist()
    broken = found[0].outcomes.verdict == Verdict.BROKEN
    assert (broken == (kept >= share - 1e-6)).all() and 5 < broken.sum() < 60
    assert {round(20 * value, 4) % 1 for value in kept.tolist()} == {0.0}
    assert len(set(kept.tolist())) > 5


@pytest.mark.row("G14")
def test_a_lower_share_is_no_harder_and_gradients_are_counted_for_each_draw() -> None:
    x, y = images()
    strict, lax = (
        bench.attack(
            small_cnn(), x, y, "fgsm", eps="1/10",
            nuisance=Nuisance(degrees=20.0, shift=1.0, share=share, draws=4),
        )
        for share in (0.9, 0.1)
    )  # fmt: skip
    assert int(strict.success.sum()) < int(lax.success.sum())
    assert set(strict.gradients.tolist()) == {4}


def test_without_a_nuisance_no_share_is_recorded() -> None:
    x, y = images()
    found = bench.attack(small_cnn(), x, y, "fgsm", eps="1/5")
    assert set(found.outcomes.share.tolist()) == {-1.0}


def test_attacks_with_draws_of_their_own_apply_and_a_trace_does_not() -> None:
    x, y = images()
    found = bench.attack(
        small_cnn(), x[:8], y[:8], "pgd-eot", eps="1/5", steps=2, nuisance=NUISANCE
    )
    assert int(found.gradients.amax()) == 64
    registry = Registry.without_submissions()
    selection = Selection(("digits-physical",), ("linear",), ("pgd",), examples=4)
    assert single_pair(registry, selection, "a test").threat.nuisance is not None
    with pytest.raises(BenchError, match="digits-physical is random"):
        trace_attack(registry, selection)
