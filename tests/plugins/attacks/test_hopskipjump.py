"""HopSkipJump: known distances, its estimates, its queries, and its success with labels only."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.plugin import Traits
from bench.threats.access import Access, Budget
from bench.threats.norms import L2, Linf, PerturbationSet
from bench.threats.threat_model import Goal
from plugins.attacks.boundary import Boundary
from plugins.attacks.hopskipjump import (
    GIVEN_UP,
    JUMP,
    PROBE,
    SEARCH,
    HopSkipJump,
    State,
    bench_attacks,
    shrunk,
)
from tests.fixtures.known_models import (
    Result,
    binary,
    digits,
    gaussian,
    interior,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

NEAREST = Goal("nearest")
BALLS: dict[str, PerturbationSet] = {"Linf": Linf(Fraction(1, 5)), "L2": L2(Fraction(1))}
each_norm = pytest.mark.parametrize("norm", BALLS)
HARD = L2(Fraction(1, 1000))
"""A ball in which nothing is found, so that every query is made."""


def walk(
    attack: HopSkipJump, model: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet, steps: int
) -> tuple[list[State], list[Tensor], BatchProblem]:
    """The states and the queries of an attack on images `x` with labels `y`."""
    rows = rows_of(attack, model, x, y, ball, access=Access.LABELS)
    queries: list[Tensor] = []
    rows.on_query = lambda adv, _logits, _charged: queries.append(adv)
    return list(kept_states(attack, rows, steps)), queries, rows


def kept_states(attack: HopSkipJump, rows: BatchProblem, steps: int) -> Iterator[State]:
    for state in states(attack, rows, steps):
        assert isinstance(state, State)
        yield state


def nearest(model: nn.Module, x: Tensor, y: Tensor, norm: str, queries: int) -> Result:
    """The result of a search for the nearest adversarial image."""
    attack = HopSkipJump(steps=queries)
    return run_and_judge(attack, model, x, y, BALLS[norm], goal=NEAREST, access=Access.LABELS)


def excess_on_a_hyperplane(norm: str, queries: int) -> Tensor:
    """Found over true distances to a hyperplane [n], of images whose ball is inside the box."""
    x, weight = interior(32, 48), gaussian(48)
    offset = 0.3 - float((weight * 0.5).sum())
    side = x.flatten(1).double() @ weight.double() + offset
    true = side.abs() / weight.double().norm(1 if norm == "Linf" else 2)
    found = nearest(binary(weight, offset), x, (side > 0).long(), norm, queries).distance
    excess: Tensor = found / true
    return excess


@pytest.mark.row("B11")
@each_norm
def test_the_distance_to_a_hyperplane_is_nearly_exact(norm: str) -> None:
    excess = excess_on_a_hyperplane(norm, 600)
    assert excess.min() >= 1 - 1e-4
    assert excess.median() < 1.1


@pytest.mark.slow
@pytest.mark.row("B11")
@each_norm
def test_the_distance_to_a_hyperplane_is_exact_to_a_few_percent_at_10000_queries(norm: str) -> None:
    excess = excess_on_a_hyperplane(norm, 10_000)
    assert excess.min() >= 1 - 1e-4
    assert excess.median() < 1.02
    assert excess.max() < 1.05


@pytest.mark.row("B11")
@each_norm
def test_every_kept_image_is_adversarial_and_no_farther_than_the_one_before(norm: str) -> None:
    x, y = digits(32)
    path, _, rows = walk(HopSkipJump(), small_cnn(), x, y, BALLS[norm], 200)
    for before, after in pairwise(path):
        assert (after.distance <= before.distance + 1e-6).all()
    for state in path[::10]:
        known = state.distance.isfinite()
        label = ModelAccess(small_cnn()).logits(state.adv).argmax(1)
        assert (label != y)[known].all()
        assert torch.allclose(rows.ball.distance(state.adv, x)[known], state.distance[known])
        assert torch.equal(state.adv[~known], x[~known])
    assert (path[-1].distance < 0.8 * path[40].distance).float().mean() > 0.7


@each_norm
def test_the_estimate_points_across_the_boundary(norm: str) -> None:
    """The cosine to the normal of a hyperplane is that of as many random probes, at least."""
    weight, attack = gaussian(48), HopSkipJump(probes=100)
    x = interior(32, 48)
    offset = 0.3 - float((weight * 0.5).sum())
    y = (x.flatten(1) @ weight + offset > 0).long()
    path, _, _ = walk(attack, binary(weight, offset), x, y, BALLS[norm], 160)
    outward = weight.view(1, 1, 1, 48) * (1 - 2 * y).view(-1, 1, 1, 1)
    for row in range(32):
        state = next(s for s in path if s.phase[row] == JUMP)
        mean = state.score[row] / state.weight[row]
        slope = state.signed[row] - mean * state.moves[row]
        cosine = torch.cosine_similarity(slope.flatten(), outward[row].flatten(), dim=0)
        assert cosine > 0.5


def test_a_search_halves_its_interval_and_ends_on_the_wrong_side() -> None:
    x, y = digits(32)
    path, queries, rows = walk(HopSkipJump(looks=0), small_cnn(), x, y, BALLS["L2"], 60)
    searched = 0
    for before, query, after in zip(path, queries, path[1:], strict=False):
        rowwise = (before.phase == SEARCH).nonzero()[:, 0]
        middle = (before.low + before.high) / 2
        assert torch.equal(query[rowwise], shrunk(rows, before.outer, middle)[rowwise])
        width = (after.high - after.low)[rowwise]
        going = (after.phase == SEARCH)[rowwise]
        assert torch.equal(width[going], (before.high - before.low)[rowwise][going] / 2)
        searched += len(rowwise)
    assert searched > 300
    first = [next(s for s in path if s.phase[row] == PROBE) for row in range(32)]
    assert all((s.high - s.low)[row] <= 2.0**-10 for row, s in enumerate(first))


def test_each_further_estimate_has_more_probes() -> None:
    x, y = digits(32)
    path, _, _ = walk(HopSkipJump(probes=9), small_cnn(), x, y, HARD, 250)
    runs: dict[int, list[int]] = {}
    for state in path:
        for row in (state.phase == PROBE).nonzero()[:, 0].tolist():
            runs.setdefault(int(state.estimates[row]), []).append(int(state.made[row]))
    assert [max(runs[r]) + 1 for r in range(4)] == [9, 13, 16, 18]


@pytest.mark.row("B11")
@each_norm
def test_only_labels_matter(norm: str) -> None:
    """The outcome, image and cost on a one-hot output are those on the logits."""
    x, y = digits(32)
    attack = HopSkipJump(steps=150)
    open_, shut = (
        run_and_judge(attack, model, x, y, BALLS[norm], access=Access.LABELS)
        for model in (small_cnn(), OneHot(small_cnn()))
    )
    assert open_.broken.sum() > 5
    assert all(torch.equal(a, b) for a, b in zip(open_, shut, strict=True))
    assert open_.gradients.sum() == 0


class OneHot(nn.Module):
    """One-hot logits: the right label and a zero gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        logits = self.module(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


@pytest.mark.slow
@pytest.mark.row("B11")
@each_norm
def test_an_undefended_network_is_broken_within_1000_queries(norm: str) -> None:
    x, y = digits(100)
    budget = Budget(queries=1000)
    result = run_and_judge(
        HopSkipJump(), OneHot(small_cnn()), x, y, BALLS[norm], access=Access.LABELS, budget=budget
    )
    assert (~result.broken).sum() <= 8
    assert result.forwards.max() <= 1000


@pytest.mark.slow
@pytest.mark.row("B11")
def test_the_median_distance_is_below_that_of_the_boundary_attack() -> None:
    x, y = digits(96)
    right = ModelAccess(small_cnn()).logits(x).argmax(1) == y
    ours = nearest(small_cnn(), x, y, "L2", 1000).distance[right]
    theirs = run_and_judge(
        Boundary(steps=1000), small_cnn(), x, y, BALLS["L2"], goal=NEAREST, access=Access.LABELS
    ).distance[right]
    assert ours.median() <= theirs.median()


class Constant(nn.Module):
    """Returns the same logits for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(10.0).expand(len(images), 10).clone()


def test_a_row_without_a_starting_point_is_robust_after_a_hundred_queries() -> None:
    x, _ = digits(32)
    y = torch.full((32,), 9)
    *_, last = walk(HopSkipJump(), Constant(), x, y, BALLS["L2"], 100)[0]
    assert (last.phase == GIVEN_UP).all()
    result = run_and_judge(HopSkipJump(), Constant(), x, y, BALLS["L2"], access=Access.LABELS)
    assert not result.broken.any()
    assert (result.forwards == 100).all()
    assert torch.equal(result.image, x)


def test_the_default_runs_on_the_first_hundred_examples_and_a_variant_on_all() -> None:
    counts = {attack.name: Traits.of(attack).examples for attack in bench_attacks()}
    assert counts == {"hopskipjump": 100, "hopskipjump-all": 0}
