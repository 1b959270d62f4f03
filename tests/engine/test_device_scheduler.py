"""Tests of bench.engine.device_scheduler: the same results, and one wait in four steps."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from torch import Tensor

from bench.engine.device_scheduler import DeviceScheduler, scheduler_for
from bench.engine.scheduler import SETTLE_STEPS, Scheduler
from bench.plugin import Attack
from bench.registry.registry import Registry
from bench.threats.access import Budget
from bench.threats.norms import L2, Linf
from bench.threats.threat_model import Goal
from plugins.attacks.pgd import PGD
from tests.engine.device_run import differences, moved_cell, nothing, on_device, on_host
from tests.engine.single_run import NEAREST, NoisyModel, SingleRun
from tests.fixtures.known_models import small_cnn
from tests.fixtures.simulated_device import SimulatedDevice

NARROW = Linf(Fraction(1, 20))


class FromSurrogate(PGD):
    """PGD that queries a surrogate model, so that no success is seen before the final check."""

    source = "surrogate"


REGISTRY = Registry.without_submissions()


def attack(name: str, **changes: Any) -> Attack:
    found: Attack = REGISTRY.attacks[name].value
    return replace(found, **changes) if changes else found  # type: ignore[type-var]


CELLS = {
    "FGSM": SingleRun(attack("fgsm"), count=256),
    "PGD": SingleRun(attack("pgd"), count=100),
    "APGD-CE": SingleRun(attack("apgd-ce", steps=40), count=90, ball=NARROW),
    "APGD-T": SingleRun(attack("apgd-t", steps=8), count=70, ball=NARROW),
    "Square": SingleRun(attack("square", steps=80), count=70, ball=NARROW),
}


@pytest.mark.parametrize("single", CELLS.values(), ids=CELLS.keys())
def test_the_host_waits_at_most_once_in_four_steps_and_results_are_those_of_the_cpu(
    single: SingleRun,
) -> None:
    run = on_device(single)
    assert run.steps >= 4
    assert 0 < sum(run.waits.values()) <= run.steps / 4, run.waits
    assert differences(run.candidates, on_host(single)) == []


OTHERS = {
    "restarts in turn": SingleRun(PGD(steps=7, restarts=3), count=90),
    "restarts in parallel": SingleRun(PGD(steps=7, restarts=3), count=30, ball=NARROW),
    "targeted": SingleRun(PGD(steps=9), count=70, goal=Goal("targeted", "next")),
    "a transfer attack": SingleRun(FromSurrogate(steps=6), count=70, source=small_cnn()),
}


@pytest.mark.parametrize("single", OTHERS.values(), ids=OTHERS.keys())
def test_other_cells_have_the_same_results(single: SingleRun) -> None:
    run = on_device(single)
    assert sum(run.waits.values()) <= -(-run.steps // SETTLE_STEPS)
    assert differences(run.candidates, on_host(single)) == []


@pytest.mark.parametrize("slots", [32, 96, 256])
def test_results_do_not_depend_on_the_number_of_slots(slots: int) -> None:
    single = SingleRun(PGD(steps=10, restarts=2), count=130, ball=Linf(Fraction(1, 8)))
    assert differences(on_device(single, slots).candidates, on_host(single)) == []


def test_without_a_confirmed_success_every_restart_runs_to_its_end() -> None:
    single = SingleRun(PGD(steps=6, restarts=2), count=80)
    found, expected = on_device(single, rule=nothing).candidates, on_host(single, rule=nothing)
    reached = single.spec().reached_on_clean
    assert bool((expected.forwards[~reached] == 12).all())
    assert differences(found, expected) == []


def test_a_cell_that_needs_more_of_the_host_gets_the_plain_scheduler() -> None:
    plain = SingleRun(PGD(), count=4)
    device = SimulatedDevice()
    with device:
        for single, kind in (
            (plain, DeviceScheduler),
            (replace(plain, budget=Budget(queries=9)), Scheduler),
            (replace(plain, goal=NEAREST), Scheduler),
            (replace(plain, attack=attack("deepfool"), ball=L2(Fraction(1))), Scheduler),
            (replace(plain, model=NoisyModel(0.1), random=True), Scheduler),
        ):
            spec, referee = moved_cell(single.spec(), single)
            assert type(scheduler_for(spec, referee.confirm, [0])) is kind
    spec = plain.spec()
    assert type(scheduler_for(spec, plain.referee(spec).confirm, [0])) is Scheduler


@pytest.mark.parametrize(
    "single",
    [
        SingleRun(attack("deepfool"), count=40, ball=L2(Fraction(1, 2))),
        SingleRun(PGD(steps=12), count=70, budget=Budget(queries=8)),
        SingleRun(PGD(steps=5), count=40, goal=NEAREST),
    ],
    ids=["convergence", "a budget", "the nearest example"],
)
def test_other_attacks_have_the_same_results_on_a_device(single: SingleRun) -> None:
    assert differences(on_device(single).candidates, on_host(single)) == []


def test_the_batch_is_halved_towards_the_end() -> None:
    sizes = list[int]()

    class Sizes(PGD):
        def step(self, problem: Any, adv: Tensor) -> Tensor:
            sizes.append(len(adv))
            return super().step(problem, adv)

    single = SingleRun(Sizes(steps=24), count=256)
    run = on_device(single, 256)
    assert set(sizes) <= {256, 128, 64, 32} and sizes[-1] < 256
    assert differences(run.candidates, on_host(single, 256)) == []
