"""Tests of bench.engine.runner: results depend on nothing but cell, seed and example."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Verdict
from bench.engine.runner import run_attack
from bench.threats.access import Budget
from bench.threats.norms import L1, L2, Linf
from bench.threats.threat_model import Goal
from plugins.attacks.boundary import Boundary
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from plugins.attacks.random_noise import RandomNoise
from plugins.attacks.transfer import Transfer
from tests.engine.single_run import COUNT, NEAREST, NoisyModel, SingleRun, assert_same
from tests.fixtures.known_models import UNTARGETED, digits, run_and_judge, small_cnn
from tests.fixtures.rejecting_defenses import (
    BALL,
    SMALL_STEPS,
    TARGETED,
    FirstPixelClassifier,
    always_rejects,
    grey_images,
    never_rejects,
    rejects_by_second_pixel,
    run_on_grey_images,
)


def nearest_mean() -> nn.Module:
    """The nearest-class-mean classifier of the digits, a deterministic surrogate."""
    x, y = digits(COUNT)
    means = torch.stack([x[y == label].flatten(1).mean(0) for label in range(10)])
    linear = nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(means)
        linear.bias.copy_(-means.square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), linear)


RUNS = {
    "pgd with restarts": SingleRun(PGD(steps=6, restarts=3)),
    "pgd in L2": SingleRun(PGD(steps=10), L2(Fraction(1))),
    "pgd in L1": SingleRun(PGD(steps=10), L1(Fraction(2))),
    "margin towards every class": SingleRun(MarginPGD(steps=5), L2(Fraction(1, 2))),
    "random draws": SingleRun(RandomNoise(draws=5), Linf(Fraction(1, 2))),
    "deepfool": SingleRun(DeepFool(), L2(Fraction(1))),
    "deepfool for distance": SingleRun(DeepFool(), L2(Fraction(8)), NEAREST),
    "boundary": SingleRun(Boundary(steps=150), L2(Fraction(2)), budget=Budget(queries=120)),
    "transfer": SingleRun(Transfer(steps=8), source=nearest_mean()),
    "targeted": SingleRun(PGD(steps=12), goal=Goal("targeted", "next")),
    "declared random": SingleRun(PGD(steps=8, restarts=2), model=NoisyModel(0.05), random=True),
    "declared random, small images": SingleRun(
        PGD(steps=8, restarts=2), model=NoisyModel(0.05), random=True, noise_rows=128
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_results_depend_on_neither_batch_nor_order_nor_interruption(name: str) -> None:
    single = RUNS[name]
    first = single.run(64)
    assert first.outcomes.item.tolist() == list(range(COUNT))
    assert 0 < (first.outcomes.verdict == Verdict.BROKEN).sum() < COUNT or single.goal is NEAREST
    assert_same(first, single.run(32))
    assert_same(first, single.run(512))
    assert_same(first, single.run(64, order=np.random.default_rng(0).permutation(COUNT).tolist()))
    assert_same(first, single.run(64, cuts=[1, 1]))


@pytest.mark.parametrize(("rows", "batches"), [(64, [64, 64, 24]), (128, [128, 24]), (512, [152])])
def test_items_of_a_noise_group_run_as_one_batch(rows: int, batches: list[int]) -> None:
    model = NoisyModel(0.05)
    single = SingleRun(
        PGD(steps=1, restarts=1), Linf(Fraction(1, 255)), model=model, random=True, count=150,
        noise_rows=rows,
    )  # fmt: skip
    spec, sizes = single.spec(), list[int]()
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    list(run_attack(spec, lambda items, points: torch.zeros(len(items), dtype=torch.bool)))
    assert sizes[:: len(sizes) // len(batches)] == batches


def test_another_seed_gives_other_images() -> None:
    single = SingleRun(PGD(steps=5))
    spec, other = single.spec(), replace(single.spec(), seed=1)
    one, two = (
        torch.cat([part.image for part in run_attack(g, single.referee(g).confirm)])
        for g in (spec, other)
    )
    assert not torch.equal(one, two)


def test_a_success_at_step_s_is_broken_with_s_steps_and_not_with_fewer() -> None:
    whole = SingleRun(PGD(steps=12)).run().outcomes
    assert len(set(whole.step.tolist())) > 4
    for steps in (1, 3, 7):
        part = SingleRun(PGD(steps=steps)).run().outcomes
        expected = (whole.step >= 0) & (whole.step <= steps)
        assert np.array_equal(part.verdict == Verdict.BROKEN, expected)


def test_restarts_are_nested() -> None:
    once = SingleRun(PGD(steps=4)).run()
    thrice = SingleRun(PGD(steps=4, restarts=3)).run()
    first = thrice.outcomes.restart == 0
    assert np.array_equal(first, once.outcomes.verdict == Verdict.BROKEN)
    assert torch.equal(thrice.images[torch.from_numpy(first)], once.images[torch.from_numpy(first)])
    assert (thrice.outcomes.restart > 0).sum() > 3


def test_more_steps_and_more_restarts_break_no_less() -> None:
    broken = [
        set(np.flatnonzero(SingleRun(PGD(steps=s, restarts=r)).run().outcomes.verdict).tolist())
        for s, r in ((2, 1), (5, 1), (5, 2))
    ]
    assert broken[0] < broken[1] < broken[2]


def test_radius_zero_leaves_clean_accuracy() -> None:
    single = SingleRun(PGD(steps=3), Linf(Fraction(0)))
    spec = single.spec()
    outcomes = single.run().outcomes
    assert np.array_equal(outcomes.verdict == Verdict.BROKEN, spec.reached_on_clean.numpy())


def test_a_transfer_attack_does_not_stop_at_a_success_on_the_target() -> None:
    single = RUNS["transfer"]
    outcomes = single.run().outcomes
    reached = single.spec().reached_on_clean.numpy()
    assert set(outcomes.gradients[~reached].tolist()) == {8}
    assert set(outcomes.final_checks[~reached].tolist()) == {1}
    assert set(outcomes.step[~reached].tolist()) <= {-1, 8}


def test_the_goal_nearest_keeps_the_nearest_success() -> None:
    far = SingleRun(Boundary(steps=60), L2(Fraction(8)), NEAREST).run().outcomes
    near = SingleRun(Boundary(steps=300), L2(Fraction(8)), NEAREST).run().outcomes
    assert (near.distance <= far.distance + 1e-9).all()
    assert np.median(near.distance) < 0.8 * np.median(far.distance)
    assert (near.verdict == Verdict.BROKEN).all()


def test_a_score_that_never_rejects_changes_no_result() -> None:
    x, y = digits(96)
    model = small_cnn()

    class Scored(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            return torch.cat([logits, 0 * logits[:, :1] - 1], 1)

    attack = PGD(steps=8)
    plain, scored = (
        run_and_judge(attack, model, x, y, BALL),
        run_and_judge(attack, Scored(), x, y, BALL, rejects=True),
    )
    assert plain.broken.any() and not plain.broken.all()
    assert all(torch.equal(a, b) for a, b in zip(plain, scored, strict=True))


@pytest.mark.parametrize(("goal", "target"), [(UNTARGETED, None), (TARGETED, 1)])
def test_images_that_are_always_rejected_are_never_broken(goal: Goal, target: int | None) -> None:
    targets = None if target is None else torch.full((64,), target)
    accepted = run_on_grey_images(SMALL_STEPS, never_rejects, goal=goal, target=targets)
    assert accepted.broken.all() and (accepted.step == 3).all()
    robust = run_on_grey_images(SMALL_STEPS, always_rejects, goal=goal, target=targets)
    assert not robust.broken.any() and (robust.step == -1).all()
    assert torch.allclose(robust.image[:, 0, 0, 0], torch.tensor(0.65))


def test_a_misclassified_and_rejected_clean_image_is_attacked() -> None:
    x, y = grey_images()
    found = run_and_judge(
        SMALL_STEPS,
        FirstPixelClassifier(rejects_by_second_pixel(0.3)),
        x,
        1 - y,
        BALL,
        rejects=True,
    )
    assert (found.forwards > 0).all() and not found.broken.any()
