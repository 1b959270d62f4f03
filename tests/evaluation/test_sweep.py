"""Sweeps play whole cells of an attack's variants and say which have not converged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.evaluation.plan import Selection
from bench.evaluation.sweep import SweepPoint, sweep, variants
from bench.plugin import Problem
from bench.registry.registry import Registry
from plugins.attacks.pgd import PGD

SELECTION = Selection(("digits-linf",), ("linear",), ("pgd",), examples=64)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.without_submissions()


@pytest.fixture(scope="module")
def points(registry: Registry) -> dict[tuple[int, float], SweepPoint]:
    grid: dict[str, list[Any]] = {"steps": [5, 40], "rate": [0.005, 0.1]}
    found = sweep(registry, SELECTION, grid)
    return {(p.parameters["steps"], p.parameters["rate"]): p for p in found}


@pytest.mark.row("E10")
def test_more_steps_and_steps_that_cross_leave_less(
    points: dict[tuple[int, float], SweepPoint],
) -> None:
    robust = {key: point.robust.k for key, point in points.items()}
    assert list(robust) == [(5, 0.005), (5, 0.1), (40, 0.005), (40, 0.1)]
    assert robust[5, 0.005] > robust[5, 0.1] > robust[40, 0.1]
    assert robust[5, 0.005] >= robust[40, 0.005] > robust[40, 0.1]
    assert {point.robust.n for point in points.values()} == {64}


@pytest.mark.row("E10")
def test_a_variant_whose_last_doubling_still_gains_has_not_converged(
    points: dict[tuple[int, float], SweepPoint],
) -> None:
    assert not points[5, 0.1].converged
    assert points[5, 0.1].late > 0.01 * 64
    assert points[40, 0.1].converged
    one = replace(points[40, 0.1], late=1)
    many = replace(one, robust=replace(one.robust, n=100))
    assert not one.converged and many.converged, "at most one point"


def test_the_point_of_the_default_parameters_is_the_cell_of_a_run(
    registry: Registry, points: dict[tuple[int, float], SweepPoint]
) -> None:
    (default,) = sweep(registry, SELECTION, {"steps": [PGD.steps]})
    assert default.robust == points[40, 0.1].robust
    assert default.late == points[40, 0.1].late


class OutsideTheSet(PGD):
    """PGD whose iterates leave the perturbation set by half of its radius."""

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        away = torch.where(adv > 0.5, -1.0, 1.0)
        return problem.x + 1.5 * problem.ball.radius * away


def test_refused_candidates_leave_their_examples_unbroken(registry: Registry) -> None:
    found = registry.attacks["pgd"]
    attacks = {**registry.attacks, "pgd": replace(found, value=OutsideTheSet())}
    (point,) = sweep(replace(registry, attacks=attacks), SELECTION, {"steps": [2]})
    (noise,) = sweep(registry, replace(SELECTION, attacks=("random",)), {"draws": [1]})
    assert point.robust.k >= noise.robust.k > 50


@pytest.mark.parametrize(
    ("selection", "grid", "sentence"),
    [
        ({}, {"alpha": [1]}, "pgd has no parameter 'alpha' to set"),
        ({"attacks": ("pgd", "fgsm")}, {"steps": [1]}, "the selection has 2"),
        ({"threats": ("digits-l1",), "attacks": ("fgsm",)}, {}, "fgsm works in Linf"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(
    registry: Registry, selection: dict[str, Any], grid: dict[str, list[int]], sentence: str
) -> None:
    with pytest.raises(BenchError, match=sentence):
        sweep(registry, replace(SELECTION, **selection), grid)


def test_variants_keep_name_and_other_parameters() -> None:
    found = list(variants(PGD(restarts=3), {"steps": [1, 2]}))
    assert [chosen for chosen, _ in found] == [{"steps": 1}, {"steps": 2}]
    assert [attack for _, attack in found] == [PGD(steps=1, restarts=3), PGD(steps=2, restarts=3)]
