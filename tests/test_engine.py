"""The engine's laws: nothing an example gets depends on the company it keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.engine import Attempts, Game, play
from bench.kit import cross_entropy
from bench.plugin import Access, Attack, Problem, Traits
from bench.problem import UNIT
from bench.records import Budget, Outcomes, PluginError, Verdict
from bench.target import Noise, Target
from bench.threat import L1, L2, Goal, Linf, PerturbationSet
from bench.verify import Court, Referee, judge, wrong
from plugins.attacks.boundary import Boundary
from plugins.attacks.deepfool import DeepFool
from plugins.attacks.fab import FAB
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from plugins.attacks.random import Random
from plugins.attacks.transfer import Transfer
from tests.duel import UNTARGETED, digits, small_cnn

COUNT = 150
LINF = Linf(Fraction(51, 255))
NEAREST = Goal("nearest")
FREE = Budget()


class Played(tuple[Outcomes, Tensor, int]):
    """Outcomes and images in item order, and how often the model was called."""

    outcomes = property(lambda self: self[0])
    images = property(lambda self: self[1])
    calls = property(lambda self: self[2])


@dataclass(frozen=True)
class Match:
    """One attack against one model; the rest may be varied."""

    attack: Attack
    ball: PerturbationSet = LINF
    goal: Goal = UNTARGETED
    model: nn.Module | None = None
    source: nn.Module | None = None
    random: bool = False
    budget: Budget = FREE
    count: int = COUNT

    def game(self, slots: int = 64) -> Game:
        model = self.model or small_cnn()
        x, y = digits(self.count)
        aim = (y + 1) % 10 if self.goal.kind == "targeted" else torch.full_like(y, -1)
        noise = self.noise("play")
        groups = range(-(-len(x) // 64))
        clean = Court(copy.deepcopy(model), noise=self.noise("clean")).answer(x, groups)
        door = Target(self.source) if self.source else Target(model, noise=noise)
        return Game(
            attack=self.attack, door=door, defense=Target(model, noise=noise), ball=self.ball,
            goal=self.goal, budget=self.budget, x=x, y=y, aim=aim, clean=clean.logits,
            lost=wrong(clean.votes, y, aim, self.goal), seed=0, slots=slots, noise=noise,
        )  # fmt: skip

    def noise(self, role: str) -> Noise | None:
        return Noise(0, role, torch.device("cpu")) if self.random else None

    def referee(self, game: Game) -> Referee:
        court = Court(copy.deepcopy(self.model or small_cnn()), noise=self.noise("judge"))
        minimises = Traits.of(self.attack).minimises
        fresh = self.noise("confirm")
        rules = (self.ball, self.goal, game.x, game.y, game.aim)
        return Referee(court, *rules, minimises=minimises, fresh=fresh)

    def play(self, slots: int = 64, cuts: Sequence[int] = (), **options: Any) -> Played:
        """Play to the end; at each cut the engine is thrown away after so many chunks."""
        game = self.game(slots)
        answer = Court(copy.deepcopy(self.model or small_cnn()), noise=self.noise("x"))
        clean = answer.answer(game.x, range(-(-len(game.x) // 64)))
        attempts: list[Attempts] = []
        calls = [0]
        module = game.door.module
        hook = module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        for cut in [*cuts, None]:
            done = [item for part in attempts for item in part.item.tolist()]
            referee, chunks = self.referee(game), range(cut or 10**9)
            stream = play(self.game(slots), referee.confirm, finished=done, **options)
            attempts += [part for _, part in zip(chunks, stream, strict=False)]
        hook.remove()
        judged = list(judge(attempts, self.referee(game), clean))
        outcomes = Outcomes.concatenate([chunk.outcomes for chunk in judged])
        item = torch.cat([part.item for part in attempts])
        images = torch.cat([part.image for part in attempts])[item.argsort()]
        return Played((outcomes, images, calls[0]))


class Certain(nn.Module):
    """Always answers the class it was told for that many images; has a gradient all the same."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(COUNT)
        near = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        flat = images.flatten(1).mean(1, keepdim=True)
        return nn.functional.one_hot(y[near], 10).float() * (5 + flat)


class Shaken(nn.Module):
    """The small network behind noise, which draws from the global generator."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.body, self.sigma = copy.deepcopy(small_cnn()), sigma

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images + self.sigma * torch.randn_like(images))
        return logits


def nearest_mean() -> nn.Module:
    """The linear classifier whose classes are their means: a twin without a draw."""
    x, y = digits(COUNT)
    means = torch.stack([x[y == label].flatten(1).mean(0) for label in range(10)])
    linear = nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(means)
        linear.bias.copy_(-means.square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), linear)


MATCHES = {
    "pgd with restarts": Match(PGD(steps=6, restarts=3)),
    "pgd in L2": Match(PGD(steps=10), L2(Fraction(1))),
    "pgd in L1": Match(PGD(steps=10), L1(Fraction(2))),
    "margin towards every class": Match(MarginPGD(steps=5), L2(Fraction(1, 2))),
    "random draws": Match(Random(draws=5), Linf(Fraction(1, 2))),
    "deepfool": Match(DeepFool(), L2(Fraction(1))),
    "deepfool for distance": Match(DeepFool(), L2(Fraction(8)), NEAREST),
    "boundary": Match(Boundary(steps=150), L2(Fraction(2)), budget=Budget(queries=120)),
    "transfer": Match(Transfer(steps=8), source=nearest_mean()),
    "targeted": Match(PGD(steps=12), goal=Goal("targeted", "next")),
    "declared random": Match(PGD(steps=8, restarts=2), model=Shaken(0.05), random=True),
}


def same(one: Played, two: Played) -> None:
    for name, first, second in zip(Outcomes._fields, one.outcomes, two.outcomes, strict=True):
        assert np.array_equal(first, second), name
    assert torch.equal(one.images, two.images)


@pytest.mark.parametrize("name", MATCHES)
def test_company_order_and_interruption_change_nothing(name: str) -> None:
    match = MATCHES[name]
    first = match.play(64)
    assert first.outcomes.item.tolist() == list(range(COUNT))
    assert 0 < (first.outcomes.verdict == Verdict.BROKEN).sum() < COUNT or match.goal is NEAREST
    same(first, match.play(32))
    same(first, match.play(512))
    same(first, match.play(64, order=np.random.default_rng(0).permutation(COUNT).tolist()))
    same(first, match.play(64, cuts=[1, 1]))


def test_another_seed_plays_another_game() -> None:
    match = Match(PGD(steps=5))
    game, other = match.game(), replace(match.game(), seed=1)
    one, two = (
        torch.cat([part.image for part in play(g, match.referee(g).confirm)]) for g in (game, other)
    )
    assert not torch.equal(one, two)


def test_success_at_step_s_means_broken_with_s_steps_and_not_with_fewer() -> None:
    whole = Match(PGD(steps=12)).play().outcomes
    assert len(set(whole.step.tolist())) > 4
    for steps in (1, 3, 7):
        part = Match(PGD(steps=steps)).play().outcomes
        expected = (whole.step >= 0) & (whole.step <= steps)
        assert np.array_equal(part.verdict == Verdict.BROKEN, expected)


def test_restarts_are_nested() -> None:
    once = Match(PGD(steps=4)).play()
    thrice = Match(PGD(steps=4, restarts=3)).play()
    first = thrice.outcomes.run == 0
    assert np.array_equal(first, once.outcomes.verdict == Verdict.BROKEN)
    assert torch.equal(thrice.images[torch.from_numpy(first)], once.images[torch.from_numpy(first)])
    assert (thrice.outcomes.run > 0).sum() > 3


def test_more_steps_and_more_restarts_break_no_less() -> None:
    broken = [
        set(np.flatnonzero(Match(PGD(steps=s, restarts=r)).play().outcomes.verdict).tolist())
        for s, r in ((2, 1), (5, 1), (5, 2))
    ]
    assert broken[0] < broken[1] < broken[2]


def test_radius_zero_leaves_clean_accuracy() -> None:
    match = Match(PGD(steps=3), Linf(Fraction(0)))
    game = match.game()
    outcomes = match.play().outcomes
    assert np.array_equal(outcomes.verdict == Verdict.BROKEN, game.lost.numpy())


def add(rows: dict[str, int], name: str, tensor: Any) -> None:
    rows[name] += len(tensor)


def test_counts_equal_those_of_an_independent_hook() -> None:
    """32 rows that never break fill every slot: each model call is 32 rows that somebody pays."""
    rows = {"forward": 0, "backward": 0}
    model = Certain()
    match = Match(PGD(steps=7, restarts=2), Linf(Fraction(1, 100)), model=model, count=UNIT)
    game = match.game(UNIT)
    model.register_forward_hook(lambda _, __, out: add(rows, "forward", out))
    model.register_full_backward_hook(lambda _, __, out: add(rows, "backward", *out))
    parts = list(play(game, match.referee(game).confirm))
    forwards = sum(int(part.forwards.sum()) for part in parts)
    gradients = sum(int(part.gradients.sum()) for part in parts)
    looks = sum(int(part.looks.sum()) for part in parts)
    assert rows == {"forward": forwards + looks, "backward": gradients}
    assert (forwards, gradients, looks) == (UNIT * 14, UNIT * 14, UNIT * 2)


@pytest.mark.parametrize(
    ("attack", "ball", "budget"),
    [
        (PGD(steps=40, restarts=5), Linf(Fraction(1, 50)), Budget(gradients=7)),
        (DeepFool(), L2(Fraction(1, 10)), Budget(gradients=25)),
        (Boundary(), L2(Fraction(1, 10)), Budget(queries=33)),
    ],
    ids=["pgd", "deepfool", "boundary"],
)
def test_budgets_are_enforced(attack: Attack, ball: PerturbationSet, budget: Budget) -> None:
    outcomes = Match(attack, ball, budget=budget).play().outcomes
    limit = budget.gradients if budget.gradients is not None else budget.queries
    spent = outcomes.gradients if budget.gradients is not None else outcomes.forwards
    assert spent.max() <= (limit or 0)
    held = outcomes.verdict == Verdict.HELD
    # A row that has not spent its budget has converged on a success outside the ball.
    assert held.any()
    assert ((spent >= (limit or 0) - 9) | (outcomes.distance > ball.radius))[held].all()


def test_clean_mistakes_cost_nothing_and_count_as_broken() -> None:
    game = replace(Match(PGD(steps=3)).game(), lost=torch.arange(COUNT) % 3 == 0)
    referee = Match(PGD(steps=3)).referee(game)
    parts = list(play(game, referee.confirm))
    item = torch.cat([part.item for part in parts])
    cost = torch.cat([part.forwards for part in parts])[item.argsort()]
    assert torch.equal(cost == 0, game.lost)


def test_a_claim_that_the_referee_refuses_goes_on() -> None:
    match = Match(PGD(steps=6))
    game = match.game()
    parts = list(play(game, lambda items, images: torch.zeros(len(items), dtype=torch.bool)))
    item = torch.cat([part.item for part in parts]).argsort()
    step = torch.cat([part.step for part in parts])[item]
    assert (step[~game.lost] == -1).all()
    assert (torch.cat([part.gradients for part in parts])[item][~game.lost] == 6).all()


def test_retirement_with_refill_saves_calls_and_breaks_the_same() -> None:
    """1,000 examples at batch 100 (padded to 128) against fixed batches that make every step."""
    match = Match(PGD(), count=1000)
    played = match.play(100)
    model, calls, broken = Target(small_cnn()), 0, []
    for rows in torch.arange(1000).view(10, 100):
        solo = replace(match, count=1000).game(128)
        part = _fixed(solo, rows, model)
        broken.append(part)
        calls += 1 + PGD().steps
    assert torch.equal(torch.cat(broken), torch.from_numpy(played.outcomes.verdict == 1))
    assert played.calls * 3 <= calls


def _fixed(game: Game, rows: Tensor, model: Target) -> Tensor:
    """Every row makes every step; broken is whoever was wrong at any iterate."""
    from bench.problem import Rows, pad

    where = pad(rows, 128)
    problem = Rows(
        model, game.ball, game.goal, game.x[where], game.y[where], aim=game.aim[where],
        clean=game.clean[where], example=where, seed=0, name="pgd", budget=Budget(),
    )  # fmt: skip
    adv = game.attack.start(problem.take(torch.arange(128)))
    ever = game.lost[where].clone()
    for _ in range(game.attack.steps):
        ever |= problem.wrong(model.logits(adv))
        adv = game.attack.step(problem, adv)
        problem.t = problem.t + 1
    ever |= problem.wrong(model.logits(adv))
    return ever[: len(rows)]


def test_a_transfer_attack_never_hears_the_target() -> None:
    match = MATCHES["transfer"]
    outcomes = match.play().outcomes
    lost = match.game().lost.numpy()
    assert set(outcomes.gradients[~lost].tolist()) == {8}
    assert set(outcomes.looks[~lost].tolist()) == {1}
    assert set(outcomes.step[~lost].tolist()) <= {-1, 8}


def test_a_distance_board_keeps_the_nearest_success() -> None:
    far = Match(Boundary(steps=60), L2(Fraction(8)), NEAREST).play().outcomes
    near = Match(Boundary(steps=300), L2(Fraction(8)), NEAREST).play().outcomes
    assert (near.distance <= far.distance + 1e-9).all()
    assert np.median(near.distance) < 0.8 * np.median(far.distance)
    assert (near.verdict == Verdict.BROKEN).all()


class Peek:
    """Asks in start, which is forbidden."""

    name = "peek"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.gradient(problem.x, cross_entropy).gradient

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        return adv


class Raises(Peek):
    """Fails in the middle, after soiling nothing."""

    steps = 9

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        if int(problem.t.max()) == 3:
            raise RuntimeError("out of ideas")
        return adv + 0.01 * problem.gradient(adv, cross_entropy).gradient


class Twice(Peek):
    """Draws under one name in start and in the first step."""

    def start(self, problem: Problem) -> Tensor:
        return problem.uniform("same", tuple(problem.x.shape[1:]))

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        assert not torch.equal(adv, problem.uniform("same", tuple(problem.x.shape[1:])))
        return adv


def test_start_draws_other_numbers_than_the_first_step() -> None:
    assert len(Match(Twice(), count=UNIT).play(UNIT).outcomes.item) == UNIT


class Clock(Peek):
    """Looks at every row's clock, idle ones included: a schedule may be indexed by it."""

    steps = 5

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        assert 0 <= int(problem.t.min()) <= int(problem.t.max()) < self.steps
        return problem.ball.project(adv + 0.03 * problem.gradient(adv, cross_entropy).gradient, adv)


def test_no_clock_runs_past_the_last_step() -> None:
    assert len(Match(Clock()).play(32).outcomes.item) == COUNT


def test_start_may_not_ask() -> None:
    match = Match(Peek())
    game = match.game()
    with pytest.raises(PluginError, match="peek asked the defense a question in start"):
        list(play(game, match.referee(game).confirm))


@pytest.mark.parametrize("attack", [PGD(steps=4), Raises()], ids=["to the end", "until it fails"])
def test_model_and_random_state_are_left_alone(attack: Attack) -> None:
    model = copy.deepcopy(small_cnn())
    match = Match(attack, model=model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, hooks = torch.get_rng_state(), len(model._forward_hooks)
    game = match.game()
    try:
        list(play(game, match.referee(game).confirm))
    except RuntimeError as error:
        assert str(error) == "out of ideas"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and len(model._forward_hooks) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Blind(nn.Module):
    """No slope, and not a number on dark images."""

    def forward(self, images: Tensor) -> Tensor:
        logits = small_cnn()(images).detach()
        return torch.where(images.flatten(1).mean(1, keepdim=True) < 0.05, torch.nan, logits)


def test_no_gradient_and_no_number_end_in_verdicts() -> None:
    outcomes = Match(PGD(steps=3), model=Blind()).play().outcomes
    assert len(outcomes.item) == COUNT


def test_a_random_defense_sees_fresh_noise_at_every_call() -> None:
    model = Shaken(0.3)
    noise = Noise(0, "play", torch.device("cpu"))
    door = Target(model, noise=noise)
    x, _ = digits(8)
    noise.begin(0)
    first, second = door.logits(x), door.logits(x)
    noise.begin(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, door.logits(x))
    noise.begin(1)
    assert not torch.equal(first, door.logits(x))


class Counting(nn.Module):
    """The small network, with a note of how many rows came each time."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rows = copy.deepcopy(small_cnn()), list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        logits: Tensor = self.body(images)
        return logits


class Chunky(Counting):
    """Another last bit for batches under a unit."""

    def forward(self, images: Tensor) -> Tensor:
        few = len(images) < UNIT
        return super().forward(images) * (1 + 2**-20 if few else 1)


def test_the_tail_plays_in_smaller_batches() -> None:
    match = Match(PGD(steps=40), model=Counting())
    game = match.game(128)
    module = game.door.module
    assert isinstance(module, Counting)
    asked, spent = list[int](), 0
    for _ in range(2):
        module.rows.clear()
        spent = sum(int(part.gradients.sum()) for part in play(game, match.referee(game).confirm))
        assert min(module.rows) < UNIT
        asked.append(sum(module.rows))
    assert asked[0] < 1.6 * spent
    assert asked[1] < 1.4 * spent  # which batches are as good is known by then


def test_where_few_rows_get_other_bits_they_play_in_whole_units() -> None:
    match = Match(PGD(steps=40), model=Chunky())
    game = match.game(128)
    module = game.door.module
    assert isinstance(module, Chunky)
    module.rows.clear()
    list(play(game, match.referee(game).confirm))
    asked = [rows for rows in module.rows if rows < UNIT]
    assert 0 < len(asked) <= 2  # the self-test itself, for 8 and for 16 rows
    same(match.play(128), match.play(32))


def test_the_firmest_answers_begin_first() -> None:
    game = Match(PGD()).game()
    gap = game.clean.gather(1, game.y[:, None])[:, 0] - game.clean.scatter(
        1, game.y[:, None], -torch.inf
    ).amax(1)
    assert gap[torch.tensor(game.firmest())].diff().le(0).all()
    targeted = Match(PGD(), goal=Goal("targeted", "next")).game()
    reached = targeted.clean.argmax(1) == targeted.aim
    assert not reached[torch.tensor(targeted.firmest())[: int((~reached).sum())]].any()


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (PGD(steps=6, restarts=4), L2(Fraction(1, 2))),
        (MarginPGD(steps=5), L2(Fraction(1, 2))),
        (FAB("fab-t", True, "", walk=7), L2(Fraction(3, 10))),
    ],
    ids=["restarts", "rivals", "the nearest of each run"],
)
def test_runs_side_by_side_come_to_what_runs_one_after_another_do(
    attack: Attack, ball: PerturbationSet
) -> None:
    match = Match(attack, ball, count=40)
    alone, together, abreast = (match.play(slots) for slots in (32, 64, 512))
    same(alone, together)
    same(alone, abreast)
    assert {-1, 0} < set(alone.outcomes.run.tolist())
    assert abreast.calls < alone.calls / 2
    assert together.calls < alone.calls


def test_an_item_is_handed_on_when_its_verdict_is_known() -> None:
    match = Match(PGD(steps=6, restarts=6), Linf(Fraction(1, 10)))
    game = match.game(192)
    parts = list(play(game, match.referee(game).confirm))
    whole = torch.cat([part.item for part in parts])
    assert whole.sort().values.tolist() == list(range(COUNT))
    assert len([part for part in parts if part.forwards.any()]) > 2


@dataclass(frozen=True)
class FirstRunWins:
    """Its first run asks the negative at once; the others ask the clean image, in vain."""

    name = "first-run-wins"
    needs = Access.SCORES
    steps: int = 40

    def runs(self, classes: int) -> int:
        return 8

    def start(self, problem: Problem) -> Tensor:
        return torch.where(problem.run[:, None, None, None] == 0, 1 - problem.x, problem.x)

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        problem.logits(adv)
        return adv


def test_a_run_that_has_lost_the_race_is_let_go() -> None:
    match = Match(FirstRunWins(), Linf(Fraction(1)), model=Counting(), count=32)
    game = match.game(256)
    game.lost[small_cnn()(1 - game.x).argmax(1) == game.y] = True
    module = game.door.module
    assert isinstance(module, Counting)
    module.rows.clear()
    (parts,) = [part for part in play(game, match.referee(game).confirm) if part.forwards.any()]
    assert parts.step.tolist() == [0] * len(parts.item)
    assert sum(module.rows) < 2 * 8 * len(parts.item)  # of 40 steps that the other runs would make


@dataclass(frozen=True)
class LastStepWins:
    """Only the last question of the first run is the negative."""

    name = "last-step-wins"
    needs = Access.SCORES
    steps: int = 6

    def runs(self, classes: int) -> int:
        return 3

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        now = (problem.run == 0) & (problem.t == self.steps - 1)
        problem.logits(torch.where(now[:, None, None, None], 1 - problem.x, problem.x))
        return adv


def test_runs_that_wait_for_their_look_when_an_earlier_one_wins_are_let_go_too() -> None:
    match = Match(LastStepWins(), Linf(Fraction(1)), count=32)
    game = match.game(256)
    game.lost[small_cnn()(1 - game.x).argmax(1) == game.y] = True
    parts = list(play(game, match.referee(game).confirm))
    played = [part for part in parts if part.forwards.any()]
    assert [(set(part.step.tolist()), set(part.run.tolist())) for part in played] == [({5}, {0})]


def test_a_random_group_gives_up_the_slots_of_those_who_fell() -> None:
    ball = Linf(Fraction(1, 8))
    match = Match(MarginPGD(steps=20), ball, model=Shaken(0.02), random=True, count=UNIT * 2)
    game, sizes = match.game(), list[int]()
    game.door.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    (part,) = play(game, match.referee(game).confirm)
    left = int((part.step < 0).sum())
    assert 0 < left < UNIT and sizes[0] == UNIT * 2
    assert min(sizes) == -(-left // 8) * 8
    assert sum(sizes) < 0.7 * len(sizes) * UNIT * 2


def test_whoever_holds_a_lease_hears_of_it_before_anything_is_handed_on() -> None:
    ball = Linf(Fraction(1, 10))
    match = Match(PGD(steps=40), ball, model=Shaken(0.02), random=True, count=UNIT)
    beats = [0]
    game = replace(match.game(), beat=lambda: beats.__setitem__(0, beats[0] + 1))
    first = next(play(game, match.referee(game).confirm))
    assert len(first.item) == UNIT and beats[0] >= 40 / 4
