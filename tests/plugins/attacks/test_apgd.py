"""APGD: its schedule, its best iterate, its losses, and known optima."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem
from bench.plugin import Gradient, Loss, Traits, cross_entropy, margin
from bench.threats.norms import L2, Linf, PerturbationSet
from plugins.attacks.apgd import APGD, State, bench_attacks, checkpoint_intervals, dlr, targeted_dlr
from plugins.attacks.pgd import PGD
from tests.fixtures.known_models import (
    binary,
    digits,
    gaussian,
    interior,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

OFFERED = {attack.name: attack for attack in bench_attacks() if isinstance(attack, APGD)}
CE, DLR, TARGETED = (OFFERED[name] for name in ("apgd-ce", "apgd-dlr", "apgd-t"))
CHECKPOINTS = [22, 41, 57, 70, 80, 87, 93, 99]
each_form = pytest.mark.parametrize("attack", OFFERED.values(), ids=OFFERED.keys())
each_ball = pytest.mark.parametrize(
    "ball", [Linf(Fraction(1, 5)), L2(Fraction(1))], ids=["Linf", "L2"]
)


def flat(images: Tensor) -> Tensor:
    return images.flatten(1).double()


def iterates(attack: APGD, rows: BatchProblem) -> Iterator[State]:
    for state in states(attack, rows):
        assert isinstance(state, State)
        yield state


# Known optima.


@each_form
@pytest.mark.parametrize(
    ("ball", "near_edge", "slack"),
    [
        (Linf(Fraction(1, 4)), True, 1e-6),
        (L2(Fraction(1, 4)), False, 1e-6),
        (L2(Fraction(1, 2)), True, 1e-3),
    ],
    ids=["Linf", "L2", "L2 in the box"],
)
def test_the_best_iterate_on_a_linear_binary_model_is_the_farthest_point(
    attack: APGD, ball: PerturbationSet, near_edge: bool, slack: float
) -> None:
    """In L2 with saturated pixels the optimum has corners, and the halved steps reach it nearly."""
    x = digits(64)[0] if near_edge else interior(64, 64)
    weight, label = gaussian(64) / 8, torch.ones(64, dtype=torch.int64)
    *_, end = iterates(attack, rows_of(attack, binary(weight), x, label, ball))
    best = ball.farthest(-weight.view_as(x[:1]).expand_as(x), x)
    optimum = (flat(x) - flat(best)) @ weight.double()
    gain = (flat(x) - flat(end.best)) @ weight.double()
    assert (gain <= optimum + 1e-5).all()
    assert (gain >= optimum * (1 - slack)).all()


@pytest.mark.parametrize(
    ("ball", "dual"), [(Linf(Fraction(1, 100)), 1), (L2(Fraction(1, 50)), 2)], ids=["Linf", "L2"]
)
def test_on_a_linear_model_the_targeted_form_breaks_exactly_the_breakable_examples(
    ball: PerturbationSet, dual: float
) -> None:
    """z_j - z_y rises by at most eps ||w_j - w_y||*, where the box is out of reach."""
    weight, x = gaussian(10, 12), interior(128, 12)
    model = linear(weight, -(weight @ flat(x).float().mean(0)))
    logits = ModelAccess(model).logits(x)
    y = logits.argmax(1)
    reach = ball.radius * (weight[None] - weight[y][:, None]).norm(dual, dim=2)
    gap = logits - logits.gather(1, y[:, None])
    gap = (gap + reach).scatter(1, y[:, None], -torch.inf).amax(1)
    assert torch.equal(run_and_judge(TARGETED, model, x, y, ball).broken, gap > 0)
    assert 20 < (gap > 0).sum() < 108


# Iterates.


@each_form
@each_ball
def test_the_best_loss_never_falls_and_is_the_loss_at_the_best_iterate(
    attack: APGD, ball: PerturbationSet
) -> None:
    x, y = digits(32)
    rows = rows_of(attack, small_cnn(), x, y, ball)
    path = list(iterates(attack, rows))
    assert all((after.best_loss >= before.best_loss).all() for before, after in pairwise(path[1:]))
    loss = {
        "apgd-ce": cross_entropy,
        "apgd-dlr": dlr,
        "apgd-t": targeted_dlr(rows.other_classes[:, 0]),
    }
    for state in path[1:]:
        height = loss[attack.name](ModelAccess(small_cnn()).logits(state.best), y)
        assert torch.allclose(state.best_loss, height, rtol=1e-4, atol=1e-5)
    assert (path[-1].best_loss > path[1].best_loss).float().mean() > 0.9


class OpenLinf(Linf):
    """The Linf ball without bounds: a projection changes nothing."""

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        return adv


class OpenL2(L2):
    """The L2 ball without bounds."""

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        return adv


@each_form
@pytest.mark.parametrize("norm", [OpenLinf, OpenL2])
def test_the_first_step_is_two_radii_long(attack: APGD, norm: type[OpenLinf | OpenL2]) -> None:
    ball, x = norm(Fraction(1, 8)), interior(32, 12)
    model = linear(gaussian(10, 12))
    y = ModelAccess(model).logits(x).argmax(1)
    before, after = list(iterates(attack, rows_of(attack, model, x, y, ball)))[:2]
    assert torch.allclose(ball.distance(after.adv, before.adv), torch.tensor(0.25))


def test_a_later_step_adds_momentum_of_one_quarter() -> None:
    """Without projection on a linear binary model: .75 * 2 eps s + .25 * (2 eps s) = 2 eps s."""
    ball, x, weight = OpenLinf(Fraction(1, 8)), interior(32, 12), gaussian(12)
    y = torch.ones(32, dtype=torch.int64)
    path = [state.adv for state in iterates(DLR, rows_of(DLR, binary(weight), x, y, ball))]
    way = -0.25 * weight.sign().view(1, 1, 1, 12).expand_as(x)
    assert torch.allclose(path[2] - path[1], way, atol=1e-6)
    heavy = APGD("heavy", "dlr", "", momentum=0.5, rate=1.0)
    start, one, two = [s.adv for s in iterates(heavy, rows_of(heavy, binary(weight), x, y, ball))][
        :3
    ]
    assert torch.allclose(one - start, way / 2, atol=1e-6)
    assert torch.allclose(two - one, way / 2, atol=1e-6)


# The schedule.


@pytest.mark.parametrize(
    ("steps", "checkpoints"),
    [(100, CHECKPOINTS), (50, [11, 21, 29, 35, 40, 44, 47, 50]), (1, [1]), (3, [1, 2, 3])],
)
def test_checkpoints_are_those_of_the_paper(steps: int, checkpoints: list[int]) -> None:
    window = checkpoint_intervals(steps, torch.device("cpu"))
    assert len(window) == steps + 1
    assert window.nonzero()[:, 0].tolist() == checkpoints
    assert window.cumsum(0)[checkpoints].tolist() == checkpoints


def scripted(monkeypatch: pytest.MonkeyPatch, losses: Tensor) -> list[State]:
    """A hundred steps of rows whose losses are these [n, 100]; all gradients are equal."""
    x, n = interior(len(losses), 12), len(losses)
    y = torch.ones(n, dtype=torch.int64)
    rows = rows_of(CE, binary(gaussian(12)), x, y, L2(Fraction(1, 8)))
    true_gradient = rows.gradient

    def scripted_gradient(adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        return true_gradient(adv, loss, where)._replace(loss=losses[torch.arange(n), rows.t])

    monkeypatch.setattr(rows, "gradient", scripted_gradient)
    return list(iterates(CE, rows))


def halvings(path: list[State], row: int) -> list[int]:
    """The steps after which a row's step size was halved."""
    rates = [float(state.rate[row]) for state in path]
    changes = [t for t, (before, after) in enumerate(pairwise(rates)) if before != after]
    assert all(rates[t + 1] == rates[t] / 2 for t in changes)
    return changes


def falling(*moves: int) -> Tensor:
    """[100]: losses that increase at every step but these, where they decrease a little."""
    rise = torch.ones(100)
    rise[list(moves)] = -0.01
    return rise.cumsum(0)


def test_rows_halve_at_checkpoints_for_their_own_losses_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rising = torch.arange(100.0)
    below = torch.cat([torch.tensor([1000.0]), rising[:-1]])
    early, late = falling(*range(1, 6)), falling(*range(18, 23))
    few, even = falling(*range(1, 7)), falling(*range(42, 46))
    second = falling(*range(23, 31))
    losses = torch.stack([rising, 0 * rising, -rising, early, few, below, late, even, second])
    path = scripted(monkeypatch, losses)
    assert halvings(path, 0) == []
    assert halvings(path, 1) == CHECKPOINTS
    assert halvings(path, 2) == CHECKPOINTS
    assert halvings(path, 3) == []
    assert halvings(path, 4) == [22]
    assert halvings(path, 6) == halvings(path, 7) == []
    assert halvings(path, 8) == [41]
    # Enough increases, but never above the first loss: halved unless the last checkpoint did.
    assert halvings(path, 5) == CHECKPOINTS[::2]


def test_each_row_has_its_own_step_count() -> None:
    """Of rows that entered at different times only the one at a checkpoint is adapted."""
    x, y = interior(3, 12), torch.ones(3, dtype=torch.int64)
    rows = rows_of(CE, binary(gaussian(12)), x, y, L2(Fraction(1, 8)))
    state = CE.start(rows.at_start(torch.arange(3)))
    rows.t = torch.tensor([21, 22, 23])
    assert CE.step(rows, state).rate.tolist() == [2, 1, 2]


def test_only_a_row_that_halves_returns_to_its_best_iterate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stalls = torch.cat([torch.arange(10.0), torch.full((90,), 5.0)])
    path = scripted(monkeypatch, torch.stack([stalls, torch.arange(100.0)]))
    assert torch.equal(path[23].best[0], path[9].adv[0])
    assert torch.equal(path[23].previous[0], path[9].adv[0])
    assert torch.equal(path[23].last_loss, torch.tensor([9.0, 22.0]))
    assert torch.equal(path[23].previous[1], path[22].adv[1])


def test_a_row_that_returns_uses_the_gradient_of_its_best_iterate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient of one row changes its sign after the best iterate."""
    x, y = interior(2, 12), torch.ones(2, dtype=torch.int64)
    rows = rows_of(CE, binary(gaussian(12)), x, y, OpenLinf(Fraction(1, 8)))

    def scripted_gradient(adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        turned = torch.ones_like(adv) * (1.0 if rows.t[0] == 3 else -1.0)
        height = torch.full((2,), 1.0 if rows.t[0] == 3 else 0.0)
        return Gradient(turned, height, torch.zeros(2, 2))

    monkeypatch.setattr(rows, "gradient", scripted_gradient)
    path = list(iterates(CE, rows))
    before, after = path[22], path[23]
    drift = 0.25 * (path[3].adv - before.previous)
    assert torch.allclose(after.adv, path[3].adv + 0.75 * 0.125 + drift, atol=1e-6)


# The losses.


LOGITS, LABEL = gaussian(64, 6, seed=3), torch.arange(64) % 6
TARGET = (LABEL + 1) % 6
each_ratio = pytest.mark.parametrize("ratio", [dlr, targeted_dlr(TARGET)], ids=["dlr", "targeted"])


@each_ratio
def test_the_dlr_does_not_depend_on_scale_and_shift_of_the_logits(ratio: Loss) -> None:
    value = ratio(LOGITS.double(), LABEL)
    assert torch.allclose(ratio(1000 * LOGITS.double() - 7, LABEL), value, rtol=1e-9, atol=0)
    assert not torch.allclose(ratio(LOGITS.double() ** 3, LABEL), value)


def test_the_dlr_divides_by_the_ranks_of_the_paper() -> None:
    logits, label = torch.tensor([[4.0, 9.0, 1.0, 6.0, 0.0]]), torch.tensor([1])
    assert dlr(logits, label).item() == pytest.approx(-3 / 5)
    assert dlr(logits, torch.tensor([2])).item() == pytest.approx(8 / 5)
    assert targeted_dlr(torch.tensor([0]))(logits, label).item() == pytest.approx(-5 / 6.5)


@each_ratio
def test_the_dlr_has_the_sign_of_the_margin(ratio: Loss) -> None:
    own = LOGITS.gather(1, LABEL[:, None])[:, 0]
    gap = margin(LOGITS, LABEL) if ratio is dlr else LOGITS.gather(1, TARGET[:, None])[:, 0] - own
    assert torch.equal(ratio(LOGITS, LABEL) > 0, gap > 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_with_three_classes_or_fewer_the_dlr_is_the_margin(classes: int) -> None:
    logits, label = LOGITS[:, :classes], LABEL % classes
    target = (label + 1) % classes
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, label[:, None])[:, 0]
    assert torch.equal(dlr(logits, label), margin(logits, label))
    assert torch.equal(targeted_dlr(target)(logits, label), gap)


@each_ratio
def test_equal_logits_have_a_finite_gradient(ratio: Loss) -> None:
    logits = torch.ones(64, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(ratio(logits, LABEL).sum(), logits)
    assert slope.isfinite().all()


# Restarts, and a network.


@pytest.mark.parametrize(("classes", "runs"), [(2, 1), (3, 2), (10, 9), (100, 9)])
def test_the_targeted_form_has_at_most_nine_target_classes(classes: int, runs: int) -> None:
    assert Traits.restart_count(TARGETED, classes) == runs
    assert Traits.restart_count(CE, classes) == Traits.restart_count(DLR, classes) == 1


def test_each_restart_has_its_own_target_class() -> None:
    x, y = digits(64)
    ball, before = Linf(Fraction(2, 255)), ModelAccess(small_cnn()).logits(x)
    for run in range(9):
        rows = rows_of(TARGETED, small_cnn(), x, y, ball, restart=torch.full_like(y, run))
        *_, end = iterates(TARGETED, rows)
        ratio = targeted_dlr(rows.other_classes[:, run])
        risen = ratio(ModelAccess(small_cnn()).logits(end.best), y) > ratio(before, y)
        assert risen.float().mean() > 0.95


def test_the_next_target_class_follows_only_while_the_row_is_robust() -> None:
    x, y = digits(64)
    result = run_and_judge(TARGETED, small_cnn(), x, y, Linf(Fraction(15, 255)))
    clean = ModelAccess(small_cnn()).logits(x).argmax(1) == y
    assert (result.forwards[~result.broken] == 900).all()
    won = result.broken & clean
    assert (result.forwards[won] > 100 * result.restart[won]).all()
    assert (result.forwards[won] <= 100 * (result.restart[won] + 1)).all()
    assert 0 < (~result.broken).sum() < 64


@pytest.mark.parametrize(
    ("attack", "eps"),
    [(CE, 51), (CE, 15), (DLR, 15), (TARGETED, 51)],
    ids=["ce", "ce-small", "dlr-small", "t"],
)
def test_apgd_leaves_at_most_one_example_more_than_pgd(attack: APGD, eps: int) -> None:
    x, y = digits(96)
    ball = Linf(Fraction(eps, 255))
    robust = (~run_and_judge(attack, small_cnn(), x, y, ball).broken).sum()
    pgd = (~run_and_judge(PGD(), small_cnn(), x, y, ball).broken).sum()
    assert robust <= pgd + 1
