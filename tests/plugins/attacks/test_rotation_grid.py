"""Rotation and translation: the grid search, and attacks that work in every parametric set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.core.outcomes import Verdict
from bench.engine.cell_spec import Candidates
from bench.evaluation.plan import why_not_applicable
from bench.plugin import Access, Attack, Problem, Traits
from bench.registry.registry import Registry
from bench.threats.elastic import ElasticField
from bench.threats.parametric import ParametricSet
from bench.threats.patch import Patch
from bench.threats.spatial import RotationTranslation
from plugins.attacks.apgd import APGD
from plugins.attacks.bim import BIM
from plugins.attacks.mi_fgsm import MomentumFGSM
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from plugins.attacks.random_noise import RandomNoise
from plugins.attacks.rotation_grid import RotationGrid
from tests.engine.single_run import RunResult, SingleRun, assert_same
from tests.fixtures.known_models import digits, small_cnn
from tests.threats.test_parametric import Brightness

COUNT = 200
SMALL = RotationTranslation(degrees=10.0, pixels=0.5)
LARGE = RotationTranslation(degrees=30.0, pixels=1.0)
COARSE = RotationGrid(angles=7, rights=3, downs=3)
IN_ANY_SET: list[Attack] = [
    PGD(), BIM(), MomentumFGSM(), APGD("apgd-ce", "cross-entropy", ""), MarginPGD(steps=5),
    RandomNoise(),
]  # fmt: skip


def robust(found: RunResult) -> int:
    """The number of unbroken examples."""
    return int((found.outcomes.verdict != Verdict.BROKEN).sum())


def grid_points(grid: RotationGrid) -> Tensor:
    """All points [steps, 3] of a grid."""
    return grid.points(torch.arange(grid.steps))


def broken_by_brute_force(
    ball: RotationTranslation, grid: RotationGrid, model: nn.Module
) -> Tensor:
    """[n] bool: some point of the grid is misclassified."""
    x, y = digits(COUNT)
    broken = torch.zeros(COUNT, dtype=torch.bool)
    with torch.no_grad():
        for point in grid_points(grid):
            images = ball.apply(point.expand(COUNT, 3), x)
            broken |= model(images).argmax(1) != y
    return broken


def test_the_grid_holds_the_clean_image_and_every_corner_once() -> None:
    points = grid_points(RotationGrid())
    assert points.shape == (775, 3) and len(set(map(tuple, points.tolist()))) == 775
    assert (points == 0).all(1).sum() == 1
    corners = points[(points.abs() == 1).all(1)]
    assert len(corners) == 8
    assert grid_points(RotationGrid(1, 1, 1)).tolist() == [[0, 0, 0]]


@pytest.mark.row("P02", "G09")
def test_the_grid_breaks_what_brute_force_breaks_and_the_large_one_breaks_all() -> None:
    model, grid = small_cnn(), RotationGrid()
    found = SingleRun(grid, SMALL, model=model, count=COUNT).run()
    broken = broken_by_brute_force(SMALL, grid, model)
    assert 0 < broken.sum() < COUNT
    assert np.array_equal(found.outcomes.verdict == Verdict.BROKEN, broken.numpy())
    assert robust(SingleRun(grid, LARGE, model=model, count=COUNT).run()) == 0


@pytest.mark.row("P02", "G09")
def test_a_grid_breaks_more_than_ten_draws_and_these_more_than_one() -> None:
    model = small_cnn()
    x, y = digits(COUNT)
    clean = int((model(x).argmax(1) == y).sum())
    left = [
        robust(SingleRun(attack, SMALL, model=model, count=COUNT).run())
        for attack in (RotationGrid(), RandomNoise(draws=10), RandomNoise())
    ]
    assert left[0] < left[1] < left[2] <= clean
    identity = SingleRun(RotationGrid(1, 1, 1), SMALL, model=model, count=COUNT).run()
    assert robust(identity) == clean


def test_the_8_bit_column_is_that_of_the_image_as_a_file_has_it() -> None:
    model = small_cnn()
    found = SingleRun(COARSE, SMALL, model=model, count=COUNT).run()
    x, y = digits(COUNT)
    rounded = (SMALL.apply(found.images, x) * 255).round() / 255
    wrong = (model(rounded).argmax(1) != y).numpy()
    broken = found.outcomes.verdict == Verdict.BROKEN
    assert np.array_equal(found.outcomes.eight_bit, broken & wrong)
    assert found.outcomes.eight_bit.sum() > 0.9 * broken.sum()


def test_points_outside_the_set_are_refused_and_those_at_its_edge_are_not() -> None:
    run = SingleRun(COARSE, SMALL, model=small_cnn(), count=4)
    spec = run.spec()
    points = torch.tensor([[1.0, 1, 1], [1.01, 0, 0], [torch.nan, 0, 0], [0, 0, -1.0]])
    item, none = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    far = torch.full((4,), torch.inf, dtype=torch.float64)
    candidates = Candidates(item, points, none, none, none, none, none, far)
    found = run.referee(spec).judge(candidates)
    assert found.verdict[1:3].tolist() == [Verdict.OUT_OF_BALL, Verdict.NOT_FINITE]
    assert not set(found.verdict[[0, 3]]) & {Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX}
    assert found.distance[0] == 1 and found.distance[1] == pytest.approx(1.01)


SETS = [LARGE, ElasticField(pixels=2.0), Patch(4, 4, 2, 2), Brightness(), ElasticField(nodes=5)]


@pytest.mark.parametrize("ball", SETS, ids=lambda ball: f"{ball.name} {ball.shape(digits(1)[0])}")
@pytest.mark.parametrize("attack", IN_ANY_SET, ids=lambda attack: attack.name)
def test_attacks_run_in_sets_that_they_do_not_name(attack: Attack, ball: ParametricSet) -> None:
    model = small_cnn()
    x, y = digits(64)
    clean = int((model(x).argmax(1) == y).sum())
    found = SingleRun(attack, ball, model=model, count=64).run()
    assert robust(found) < 0.75 * clean or ball.name == "brightness" or attack.name == "random"
    assert robust(found) <= clean
    assert not set(found.outcomes.verdict) & {Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX}
    assert found.images.shape == (64, *ball.shape(x))


@pytest.mark.parametrize("attack", [COARSE, PGD(), APGD("apgd-ce", "cross-entropy", "")])
def test_results_depend_on_neither_the_batch_nor_a_stop(attack: Attack) -> None:
    run = SingleRun(attack, SMALL, model=small_cnn(), count=100)
    whole = run.run(slots=256)
    assert_same(whole, run.run(slots=32))
    assert_same(whole, run.run(slots=64, cuts=[1]))


class FromTheImage:
    """An attack that takes the clean image for a point."""

    name, needs, steps, coordinates = "from-the-image", Access.NOTHING, 1, True

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, state: Tensor) -> Tensor:
        return state


def test_an_attack_that_begins_at_the_image_is_refused_in_one_sentence() -> None:
    expected = r"start returned .* points torch.float32 \[32, 3\] were expected: begin at problem"
    with pytest.raises(PluginError, match=expected):
        SingleRun(FromTheImage(), SMALL, model=small_cnn(), count=32).run()


def test_which_attacks_meet_a_rotation_is_declared() -> None:
    registry = Registry.without_submissions()
    threat = registry.find("threat", "digits-rotation").value
    defense = registry.find("defense", "undefended").value
    meeting = {
        name
        for name, found in registry.attacks.items()
        if not why_not_applicable(threat, defense, found.value)
    }
    assert meeting == {
        "apgd-ce", "apgd-dlr", "apgd-t", "bim", "mi-fgsm", "pgd", "pgd-margin", "pgd-restarts",
        "random", "rotation-grid",
    }  # fmt: skip
    norm = registry.find("threat", "digits-linf").value
    grid = registry.find("attack", "rotation-grid").value
    why = why_not_applicable(norm, defense, grid)
    assert why == "rotation-grid works in rotation-translation; digits-linf is Linf 1/5."
    square = registry.find("attack", "hopskipjump").value
    assert "works in" in why_not_applicable(threat, defense, square)
    assert Traits.of(grid).why_not_in(threat.ball) == ""
