"""Every check of shared attacks fails on an attack made to fail it, and passes on a correct one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.contract.check import CheckOutcome
from bench.contract.runner import check_registration, checks_for
from bench.contract.shared_checks import SHARED_CHECKS
from bench.plugin import Access, SharedProblem, cross_entropy
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from tests.contract.planted import extended


class Corner:
    """A correct shared attack; subclasses replace one part by a faulty one."""

    name = "planted"
    needs = Access.GRADIENTS
    coordinates = True

    def fit(self, problem: SharedProblem) -> Tensor:
        start = problem.start
        weight = problem.draws.normal("corner", tuple(start.shape[1:]))
        return self.ended(problem, problem.ball.farthest(weight, start))

    def ended(self, problem: SharedProblem, point: Tensor) -> Tensor:
        return point


class Outside(Corner):
    def ended(self, problem: SharedProblem, point: Tensor) -> Tensor:
        return 1.1 * point


class Flat(Corner):
    def ended(self, problem: SharedProblem, point: Tensor) -> Tensor:
        return point[0]


class Idle(Corner):
    def ended(self, problem: SharedProblem, point: Tensor) -> Tensor:
        return torch.zeros_like(point)


class Counting(Corner):
    calls = 0

    def ended(self, problem: SharedProblem, point: Tensor) -> Tensor:
        Counting.calls += 1
        return point / Counting.calls


class Undeclared(Corner):
    needs = Access.LABELS

    def ended(self, problem: SharedProblem, point: Tensor) -> Tensor:
        rows = problem.rows(torch.arange(2))
        rows.gradient(point.expand(2, *point.shape[1:]), cross_entropy)
        return point


class UnknownGoal(Corner):
    goals = ("loud",)


class ElsewhereOnly(Corner):
    coordinates = False
    norms = ("a-set-of-its-own",)


FAULTS: dict[str, Any] = {
    "a-fitted-point-is-in-the-set": [Outside(), Flat(), Undeclared()],
    "a-fit-is-the-same-again": [Counting()],
    "a-point-fools-something": [Idle()],
    "traits-are-known": [UnknownGoal()],
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


def outcomes(registry: Registry, attack: Any) -> dict[str, CheckOutcome]:
    """The outcome of each check of an attack."""
    known = extended(registry, "attack", attack)
    registration: Registration[Any] = known.find("attack", attack.name)
    return {r.check: r.outcome for r in check_registration(known, "attack", registration)}


def test_a_correct_attack_passes_every_check(registry: Registry) -> None:
    found = outcomes(registry, Corner())
    assert set(found.values()) == {CheckOutcome.PASS} and len(found) == len(SHARED_CHECKS)
    assert checks_for("attack", Corner()) == SHARED_CHECKS
    assert set(FAULTS) == set(found)


@pytest.mark.parametrize(("check", "attack"), [(c, a) for c, some in FAULTS.items() for a in some])
def test_a_faulty_attack_fails_its_check(registry: Registry, check: str, attack: Any) -> None:
    assert outcomes(registry, attack)[check] is CheckOutcome.FAIL


def test_an_attack_of_an_unknown_set_is_not_checked_there(registry: Registry) -> None:
    found = outcomes(registry, ElsewhereOnly())
    assert found["a-fitted-point-is-in-the-set"] is CheckOutcome.NOT_APPLICABLE
