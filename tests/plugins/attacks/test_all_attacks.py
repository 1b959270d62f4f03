"""Checks that every registered attack passes, and properties of single attacks on digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.problem import BatchProblem, points_of
from bench.plugin import Attack, Traits
from bench.registry.registry import Registry
from bench.threats.access import Access, Budget
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.threat_model import Goal
from plugins.attacks.bim import BIM
from plugins.attacks.boundary import Boundary
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_l2step import UnsignedPGD
from plugins.attacks.pgd_margin import MarginPGD
from plugins.attacks.random_noise import RandomNoise
from plugins.attacks.transfer import Transfer
from plugins.attacks.unbounded_pgd import Unbounded
from tests.fixtures.known_models import (
    digits,
    gaussian,
    linear,
    rows_of,
    run_and_judge,
    small_cnn,
    states,
)

BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(Fraction(1, 5)),
    "L2": L2(Fraction(1)),
    "L1": L1(Fraction(2)),
}
ATTACKS = {
    name: registration.value
    for name, registration in Registry.load(Path("no-such-folder")).attacks.items()
    if Traits.has_steps(registration.value)  # the others have no iterates
}
FEW = 12  # steps, enough to leave the first phase of each schedule


def settings() -> Iterator[tuple[str, str]]:
    """Every attack in every norm that it supports."""
    for name, attack in ATTACKS.items():
        for norm in Traits.of(attack).norms or BALLS:
            if norm in BALLS:
                yield name, norm


every_attack = pytest.mark.parametrize(("name", "norm"), list(settings()))


def shortened(attack: Any) -> Attack:
    """The same attack with few steps, where the number of steps is a parameter."""
    known = dataclasses.is_dataclass(attack) and "steps" in vars(attack)
    shorter: Attack = dataclasses.replace(attack, steps=min(attack.steps, FEW)) if known else attack
    return shorter


def batch_of(
    attack: Attack, norm: str, example: Tensor, model: nn.Module | None = None
) -> BatchProblem:
    """A batch problem with these examples, each in a restart of its own choice."""
    x, y = digits(128)
    goals = Traits.of(attack).goals
    targeted = bool(goals) and "targeted" in goals and "untargeted" not in goals
    goal = Goal("targeted", "next") if targeted else Goal()
    runs = Traits.restart_count(attack, 10)
    return rows_of(
        attack, model or small_cnn(), x[example], y[example], BALLS[norm], example=example,
        restart=example % runs, goal=goal, target=(y[example] + 1) % 10 if targeted else None,
    )  # fmt: skip


@every_attack
def test_an_example_gets_the_same_image_in_any_batch(name: str, norm: str) -> None:
    """64 rows, then shuffled among other examples: the same pixels to the bit."""
    attack, first = ATTACKS[name], torch.arange(64)
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mixed = torch.cat([first[:32], torch.arange(64, 96)])[shuffle]
    known = mixed < 32
    steps = min(attack.steps, FEW)
    alone = states(attack, batch_of(attack, norm, first), steps)
    company = states(attack, batch_of(attack, norm, mixed), steps)
    for one, other in zip(alone, company, strict=True):
        assert torch.equal(points_of(one)[mixed[known]], points_of(other)[known])


@pytest.mark.row("A06", "G07")
@every_attack
def test_every_iterate_is_legal(name: str, norm: str) -> None:
    """Exactly inside the box and finite; inside the ball unless it minimises the distance."""
    attack = ATTACKS[name]
    rows = batch_of(attack, norm, torch.arange(32))
    for state in states(attack, rows, min(attack.steps, FEW)):
        adv = points_of(state)
        assert adv.isfinite().all()
        assert adv.min() >= 0
        assert adv.max() <= 1
        if not Traits.of(attack).minimises:
            assert rows.ball.contains(adv, rows.x).all()


class Constant(nn.Module):
    """Returns the same logits for every image, with a zero gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(10.0).expand(len(images), 10).clone()


@every_attack
def test_a_zero_gradient_gives_no_nan(name: str, norm: str) -> None:
    attack = ATTACKS[name]
    rows = batch_of(attack, norm, torch.arange(32), Constant())
    rows.y = torch.full_like(rows.y, 9)
    for state in states(attack, rows, min(attack.steps, FEW)):
        assert points_of(state).isfinite().all()


@every_attack
def test_neither_the_model_nor_the_global_random_state_is_touched(name: str, norm: str) -> None:
    attack, model = ATTACKS[name], small_cnn()
    before = [parameter.clone() for parameter in model.parameters()]
    random = torch.random.get_rng_state()
    x = digits(128)[0].clone()
    for _ in states(attack, batch_of(attack, norm, torch.arange(32)), min(attack.steps, FEW)):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(digits(128)[0], x)


@pytest.mark.parametrize(
    ("name", "norm"),
    [s for s in settings() if "untargeted" in (Traits.of(ATTACKS[s[0]]).goals or ["untargeted"])],
)
def test_a_radius_of_zero_breaks_nothing_that_is_right(name: str, norm: str) -> None:
    attack = shortened(ATTACKS[name])
    x, y = digits(32)
    model = small_cnn()
    source = model if Traits.of(attack).source else None
    ball = dataclasses.replace(BALLS[norm], eps=Fraction(0))  # type: ignore[type-var]
    broken = run_and_judge(attack, model, x, y, ball, source=source).broken
    assert torch.equal(broken, ModelAccess(model).logits(x).argmax(1) != y)


@pytest.mark.parametrize(
    "attack",
    [PGD(), MarginPGD(), UnsignedPGD(), BIM(), Transfer(), Unbounded()],
    ids=lambda attack: str(attack.name),
)
def test_the_steps_can_cross_the_whole_ball(
    attack: PGD | MarginPGD | UnsignedPGD | BIM | Transfer | Unbounded,
) -> None:
    """With steps shorter than two radii in all, any defense would look robust."""
    assert attack.steps * attack.rate >= 2


# Restarts.


@pytest.mark.row("A07")
def test_more_restarts_never_break_fewer_and_leave_earlier_ones_unchanged() -> None:
    """DELETE"""
    x, y = digits(128)
    one, four = (
        run_and_judge(PGD(steps=3, rate=0.3, restarts=n), small_cnn(), x, y, BALLS["Linf"])
        for n in (1, 4)
    )
    assert (four.broken | ~one.broken).all()
    assert four.broken.sum() > one.broken.sum()
    assert torch.equal(one.image[one.broken], four.image[one.broken])
    assert (four.restart[one.broken] <= 0).all()


@pytest.mark.row("A13")
def test_random_noise_costs_one_final_check_and_no_query() -> None:
    x, y = digits(64)
    model = small_cnn()
    clean = ModelAccess(model).logits(x).argmax(1) == y
    one = run_and_judge(RandomNoise(), model, x, y, BALLS["Linf"], access=Access.NOTHING)
    many = run_and_judge(RandomNoise(draws=20), model, x, y, BALLS["Linf"], access=Access.NOTHING)
    assert many.forwards.sum() == many.gradients.sum() == 0
    assert (many.final_checks[clean & ~many.broken] == 20).all()
    assert (many.broken | ~one.broken).all()
    pgd = run_and_judge(PGD(), model, x, y, BALLS["Linf"])
    assert many.broken.sum() < pgd.broken.sum() / 2


def test_margin_pgd_breaks_every_example_that_fgsm_or_pgd_breaks() -> None:
    x, y = digits(64)
    fgsm, pgd, margin = (
        run_and_judge(attack, small_cnn(), x, y, BALLS["Linf"]).broken
        for attack in (ATTACKS["fgsm"], PGD(), MarginPGD())
    )
    assert (margin | ~fgsm).all()
    assert (margin | ~pgd).all()
    assert margin.float().mean() > 0.95


# Transfer.


@pytest.mark.row("A18")
def test_a_transfer_attack_makes_all_steps_on_the_surrogate_and_one_query_of_the_defense() -> None:
    """Success on the surrogate does not end it."""
    x, y = digits(64)
    source = small_cnn()
    lost = ModelAccess(source).logits(x).argmax(1) != y
    result = run_and_judge(Transfer(), source, x, y, BALLS["Linf"], source=source)
    assert (result.forwards[~lost] == 40).all()
    assert (result.gradients[~lost] == 40).all()
    assert (result.final_checks[~lost] == 1).all()
    assert result.broken.float().mean() > 0.95


@pytest.mark.row("A18")
def test_a_transfer_attack_from_the_defense_itself_is_pgd() -> None:
    x, y = digits(64)
    images = []
    for attack in (PGD(), Transfer()):
        *_, adv = states(attack, rows_of(attack, small_cnn(), x, y, BALLS["L2"], name="same"), 10)
        images.append(adv)
    assert torch.equal(*images)


# Boundary.


class ArgmaxOnly(nn.Module):
    """One-hot logits: the right label and a zero gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        logits = self.module(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


@pytest.mark.row("B06")
def test_the_boundary_attack_is_the_same_on_argmax_output() -> None:
    x, y = digits(64)
    attack = Boundary(steps=150)
    open_, shut = (
        run_and_judge(attack, model, x, y, BALLS["L2"], access=Access.LABELS)
        for model in (small_cnn(), ArgmaxOnly(small_cnn()))
    )
    assert open_.broken.sum() > 10
    assert all(torch.equal(a, b) for a, b in zip(open_, shut, strict=True))


@pytest.mark.row("B06")
def test_the_boundary_attack_breaks_an_undefended_network_within_1000_queries() -> None:
    x, y = digits(64)
    budget = Budget(queries=1000)
    result = run_and_judge(
        Boundary(), small_cnn(), x, y, BALLS["L2"], access=Access.LABELS, budget=budget
    )
    assert (~result.broken).float().mean() < 0.15
    assert result.gradients.sum() == 0
    assert result.forwards.max() <= 1000


def test_a_row_without_a_starting_point_is_robust_after_a_hundred_queries() -> None:
    """The model predicts one class for all images."""
    x, _ = digits(32)
    y, attack = torch.full((32,), 9), Boundary(steps=150)
    *_, state = states(attack, rows_of(attack, Constant(), x, y, BALLS["L2"]), 101)
    assert attack.done(state).all()
    result = run_and_judge(attack, Constant(), x, y, BALLS["L2"], access=Access.LABELS)
    assert not result.broken.any()
    assert (result.forwards == 100).all()
    assert torch.equal(result.image, x)


def test_starting_points_of_the_boundary_attack_differ_in_class() -> None:
    """A thousand noise images reach most classes of a linear model."""
    model, attack = linear(gaussian(10, 64), torch.linspace(-1, 1, 10)), Boundary()
    x = digits(64)[0]
    rows = rows_of(attack, model, x, torch.zeros(64, dtype=torch.int64), BALLS["L2"])
    seen: set[int] = set()
    state = attack.start(rows.at_start(torch.arange(64)))
    rows.on_query = lambda _adv, logits, _where: seen.update(logits.argmax(1).tolist())
    for _ in range(16):
        attack.step(rows, state)
        rows.t = rows.t + 1
    assert len(seen) >= 8
