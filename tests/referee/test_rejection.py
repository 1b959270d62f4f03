"""The joint rule: an attack succeeds where the answer is wrong *and* accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.contract.runner import CHECKS, FIXTURES, run_check
from bench.core.outcomes import NO_ANSWER, REJECTED, Outcomes, Verdict
from bench.engine.answers import ClassifierOnly, column_mismatch, predicted_labels, reaches_goal
from bench.engine.cell_spec import Candidates
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.evaluation import plan
from bench.evaluation.certification import why_not_certifiable
from bench.plugin import Access, Defense, ExternalProblem, Problem, margin
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import Referee, clean_errors, clean_outcomes, goal_reached
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.registry.validation import why_invalid
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal, ThreatModel
from plugins.attacks.fast_gradient import FastGradient
from plugins.attacks.joint_pgd import JointPGD, joint_loss
from plugins.attacks.pgd import PGD
from tests.fixtures.known_models import UNTARGETED, Result, digits, run_and_judge, small_cnn

EPS = Fraction(1, 5)
BALL = Linf(EPS)
TARGETED = Goal("targeted", "next")


class Ramp(nn.Module):
    """Two classes by the first pixel, z_1 - z_0 = 2 x_0 - 1; rejected where `score` is positive."""

    def __init__(self, score: Any) -> None:
        super().__init__()
        self.score = score

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0]
        return torch.stack([0.5 - first, first - 0.5, self.score(images)], 1)


def never(images: Tensor) -> Tensor:
    return 0 * images[:, 0, 0, 0] - 1


def always(images: Tensor) -> Tensor:
    return 0 * images[:, 0, 0, 0] + 1


def window(low: float, high: float) -> Any:
    """Accepted where the first pixel lies between the two, and where the label is right."""

    def score(images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0]
        beyond = torch.maximum(first - high, low - first)
        return torch.where(first <= 0.5, -1.0, beyond)

    return score


def second(high: float) -> Any:
    """Accepted where the second pixel is below: no attack on the label alone moves it."""
    return lambda images: images[:, 0, 0, 1] - high


def grey(n: int = 64) -> tuple[Tensor, Tensor]:
    """[n, 1, 1, 4] at .45 everywhere: class 0, and .05 from the border."""
    return torch.full((n, 1, 1, 4), 0.45), torch.zeros(n, dtype=torch.int64)


WALK = PGD(steps=10, rate=0.1, random_start=False)
"""Steps of .02: after three the answer is wrong."""
FGSM = FastGradient("fgsm", ("Linf",), "")


def play(attack: Any, score: Any, **more: Any) -> Result:
    return run_and_judge(attack, Ramp(score), *grey(), BALL, rejects=True, **more)


# What an answer says.


def test_a_positive_score_rejects_whatever_the_logits_say() -> None:
    answer = torch.tensor([[1.0, 2, -1], [2, 1, -1], [1, 2, 1], [2, 1, 1e-30], [1, 2, 0]])
    said = predicted_labels(answer, rejects=True)
    assert said.tolist() == [1, 0, REJECTED, REJECTED, 1]
    assert predicted_labels(answer[:, :2], rejects=False).tolist() == [1, 0, 1, 0, 1]
    zero = torch.zeros_like(said)
    reached = reaches_goal(said, zero, targeted=False, rejects=True)
    assert reached.tolist() == [True, False, False, False, True]
    reached = reaches_goal(said, zero + 1, targeted=True, rejects=True)
    assert reached.tolist() == [True, False, False, False, True]


def test_answers_of_the_wrong_width_are_a_sentence() -> None:
    assert column_mismatch(11, 10, rejects=True) == column_mismatch(10, 10, rejects=False) == ""
    assert "10 columns; 11 were expected" in column_mismatch(10, 10, rejects=True)
    assert "rejection score less its threshold" in column_mismatch(10, 10, rejects=True)
    assert "rejection" not in column_mismatch(11, 10, rejects=False)


# The engine.


def test_what_never_rejects_plays_to_the_bit_as_if_there_were_no_score() -> None:
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


@pytest.mark.parametrize(("goal", "aim"), [(UNTARGETED, None), (TARGETED, 1)])
def test_what_is_always_rejected_is_never_broken(goal: Goal, aim: int | None) -> None:
    wanted = None if aim is None else torch.full((64,), aim)
    free = play(WALK, never, goal=goal, target=wanted)
    assert free.broken.all() and (free.step == 3).all()
    held = play(WALK, always, goal=goal, target=wanted)
    assert not held.broken.any() and (held.step == -1).all()
    assert torch.allclose(held.image[:, 0, 0, 0], torch.tensor(0.65))


def test_a_row_retires_at_its_first_success_against_both() -> None:
    """Wrong from step 3 on (.51), accepted between .54 and .58 alone: that is step 5."""
    found = play(WALK, window(0.54, 0.58))
    assert found.broken.all() and (found.step == 5).all()
    assert torch.allclose(found.image[:, 0, 0, 0], torch.tensor(0.55))


def test_a_walk_that_steps_over_the_window_has_not_won() -> None:
    found = play(replace(WALK, rate=0.2), window(0.54, 0.56))
    assert not found.broken.any()


def test_the_last_look_asks_the_detector_too() -> None:
    """One step of the sign leaves .65, which nobody but the harness ever asks about."""
    for score, wins in ((window(0.6, 0.7), True), (window(0.51, 0.6), False)):
        found = play(FGSM, score)
        assert (found.broken == wins).all() and (found.final_checks == 1).all()


def test_a_rejected_clean_image_of_another_class_is_not_lost_but_played() -> None:
    x, y = grey()
    found = run_and_judge(WALK, Ramp(second(0.3)), x, 1 - y, BALL, rejects=True)
    assert (found.forwards > 0).all() and not found.broken.any()


# What an attack sees.


@dataclass
class Spy:
    """Asks everything once and remembers the widths."""

    joint: bool = False
    widths: list[int] = field(default_factory=list)

    name = "spy"
    needs = Access.GRADIENTS
    steps = 1

    def start(self, problem: Problem) -> Tensor:
        return problem.x

    def step(self, problem: Problem, adv: Tensor) -> Tensor:
        def loss(answer: Tensor, label: Tensor) -> Tensor:
            self.widths.append(answer.shape[1])
            return margin(answer, label)

        self.widths.append(problem.gradient(adv, loss).logits.shape[1])
        own = torch.zeros_like(problem.y)[:, None]
        self.widths.append(problem.jacobian(adv, own).logits.shape[1])
        self.widths.append(problem.logits(adv).shape[1])
        self.widths.append(problem.clean_logits.shape[1])
        assert problem.other_classes.shape[1] == problem.classes - 1 == 1
        assert problem.labels(adv).max() < problem.classes
        return adv


def test_only_an_attack_that_goes_for_both_sees_the_score() -> None:
    spy, insider = Spy(), Spy(joint=True)
    play(spy, second(0.5))
    play(insider, second(0.5))
    assert spy.widths == [2, 2, 2, 2, 2]
    assert insider.widths == [3, 3, 3, 3, 2]


def test_a_library_sees_logits_alone_and_is_judged_by_both() -> None:
    seen: list[int] = []

    class Walk:
        name = "walk"
        needs = Access.GRADIENTS
        rows = 0

        def run(self, problem: ExternalProblem) -> Tensor:
            adv = problem.x.clone()
            for _ in range(10):
                leaf = adv.requires_grad_()
                logits = problem.model(leaf)
                seen.append(logits.shape[1])
                (slope,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
                adv = problem.ball.project(adv.detach() + 0.02 * slope.sign(), problem.x)
            return adv

    found = play(Walk(), window(0.54, 0.58))
    assert set(seen) == {2}
    assert found.broken.all() and (found.step == 5).all()
    assert not play(Walk(), always).broken.any()


def test_the_joint_attack_finds_what_no_attack_on_the_label_alone_finds() -> None:
    """Pixel 0 decides the label and must rise, pixel 1 the score, and must fall to .3."""
    alone, both = play(WALK, second(0.3)), play(JointPGD(), second(0.3))
    assert not alone.broken.any()
    assert both.broken.all()
    assert (both.image[:, 0, 0, 0] > 0.5).all() and (both.image[:, 0, 0, 1] <= 0.3).all()


def test_the_joint_loss_is_the_goal_that_is_missed() -> None:
    answer = torch.tensor([[2.0, 1.0, 3.0], [1.0, 2.0, 3.0]])
    label = torch.tensor([0, 0])
    assert joint_loss(2)(answer, label).tolist() == [-1.0, -3.0]
    assert joint_loss(3)(answer, label).tolist() == margin(answer, label).tolist()


# The referee.


def referee(score: Any, n: int = 6) -> Referee:
    x, y = grey(n)
    return Referee(
        FreshModel(Ramp(score), rejects=True), BALL, UNTARGETED, x, y, torch.full_like(y, -1)
    )


def judged(score: Any, first: Sequence[float]) -> Outcomes:
    judge = referee(score, len(first))
    images = judge.x.clone()
    images[:, 0, 0, 0] = torch.tensor(first)
    item = torch.arange(len(first))
    one = torch.ones_like(item)
    return judge.judge(Candidates(item, images, one, one, one, one, one, item + torch.inf))


def test_the_referee_breaks_only_what_is_wrong_and_accepted() -> None:
    def score(images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0]
        return torch.where(first > 0.58, torch.nan, first - 0.55)

    found = judged(score, [0.45, 0.53, 0.56, 0.6, 0.9])
    held, broken = Verdict.ROBUST, Verdict.BROKEN
    assert found.verdict.tolist() == [held, broken, held, broken, Verdict.OUT_OF_BALL]
    assert found.label.tolist() == [0, 1, 1, NO_ANSWER, NO_ANSWER]
    expected = np.array([-0.1, -0.02, 0.01, -np.inf, -np.inf], np.float32)
    assert np.allclose(found.rejection, expected, atol=1e-6)


@pytest.mark.parametrize(("score", "upheld"), [(never, True), (always, False)])
def test_fresh_draws_and_a_second_look_ask_the_detector_too(score: Any, upheld: bool) -> None:
    """Both ways in which a claim is asked about again before its row is retired."""
    x, y = grey(8)
    images = x + 0.1
    fresh = SeededNoise(0, "confirm", torch.device("cpu"))
    for noise in (fresh, None):
        court = FreshModel(Ramp(score), rejects=True)
        judge = Referee(
            court, BALL, UNTARGETED, x, y, torch.full_like(y, -1), confirmation_noise=noise
        )
        assert judge.confirm(torch.arange(8), images).tolist() == [upheld] * 8


def test_without_a_detector_no_image_has_a_score() -> None:
    x, y = digits(32)
    court = FreshModel(small_cnn())
    assert torch.isneginf(court.answer(x, [0]).rejection).all()
    assert np.isneginf(clean_outcomes(court.answer(x, [0]), y).rejection).all()


def test_a_clean_image_refused_is_a_clean_mistake() -> None:
    x, y = grey(4)
    x[1:3, 0, 0, 1] = 0.7
    y[2:] = 1
    answer = FreshModel(Ramp(second(0.5)), rejects=True).answer(x, [0])
    found = clean_outcomes(answer, y)
    assert found.verdict.tolist() == [Verdict.ROBUST, *[Verdict.BROKEN] * 3]
    assert np.allclose(found.rejection, [-0.05, 0.2, 0.2, -0.05])
    assert found.label.tolist() == [0, 0, 0, 0]


def test_votes_that_refuse_count_neither_for_the_attack_nor_for_the_defense() -> None:
    """Of ten draws six must reach the goal; on a clean image six must not name the label."""
    y, none = torch.zeros(4, dtype=torch.int64), torch.full((4,), -1)
    refused, right, other, mute = REJECTED, 0, 1, NO_ANSWER
    columns = [
        [other] * 6 + [refused] * 4,
        [other] * 5 + [refused] * 5,
        [right] * 5 + [refused] * 5,
        [mute] * 3 + [other] * 3 + [refused] * 4,
    ]
    votes = torch.tensor(columns).T
    assert goal_reached(votes, y, none, UNTARGETED).tolist() == [True, False, False, True]
    assert clean_errors(votes, y).tolist() == [True, True, False, True]
    assert goal_reached(votes, y, y + 1, TARGETED).tolist() == [True, False, False, True]


# Around it.


def test_the_joint_attack_meets_detectors_alone() -> None:
    board = ThreatModel("board", "digits", BALL)
    plain = Defense("plain", lambda loader: small_cnn())
    guarded = replace(plain, name="guarded", rejects=0.05)
    assert "plain has no detector" in plan.why_not_applicable(board, plain, JointPGD())
    assert plan.why_not_applicable(board, guarded, JointPGD()) == ""
    assert plan.why_not_applicable(board, guarded, PGD()) == ""


def test_no_certifier_is_asked_about_a_defense_that_rejects() -> None:
    class Certain:
        def refuses(self, module: nn.Module, ball: object) -> str:
            return ""

    board = ThreatModel("board", "digits", BALL)
    record = Defense("guarded", lambda loader: small_cnn(), rejects=0.05)
    guarded: Any = SimpleNamespace(rejects=True, defense=record, module=None)
    plain: Any = SimpleNamespace(rejects=False, defense=record, module=None)
    certain: Any = Certain()
    assert "guarded rejects images" in why_not_certifiable(certain, guarded, board)
    assert why_not_certifiable(certain, plain, board) == ""


@pytest.mark.parametrize("share", [0.0, 1.0, 5, True, "0.05"])
def test_a_declared_share_must_be_one(share: Any) -> None:
    record = Defense("guarded", lambda loader: small_cnn(), rejects=share)
    assert "share of clean images" in why_invalid("defense", record)
    assert why_invalid("defense", replace(record, rejects=0.05)) == ""


def test_diagnostics_are_shown_the_logits() -> None:
    x, _ = grey(3)
    module = Ramp(always)
    assert torch.equal(ClassifierOnly(module)(x), module(x)[:, :2])
    assert torch.equal(ModelAccess(module, rejects=True).visible(module(x)), module(x)[:, :2])


# The contract.


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(Path("no-such-folder"))


class Scoring(nn.Module):
    """A small network with a column more, or none."""

    def __init__(self, score: float | None) -> None:
        super().__init__()
        self.inner, self.score = small_cnn(), score

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        if self.score is None:
            return logits
        return torch.cat([logits, 0 * logits[:, :1] + self.score], 1)


@pytest.mark.parametrize(
    ("score", "law", "sentence"),
    [
        (None, "logits-have-one-column-a-class", "10 columns; 11 were expected"),
        (1.0, "clean-images-are-accepted", "rejects 1.000 of clean test images"),
        (1.0, "better-than-chance", "clean accuracy is 0.000"),
        (-1.0, "logits-have-one-column-a-class", ""),
        (-1.0, "clean-images-are-accepted", ""),
        (-1.0, "better-than-chance", ""),
    ],
)
def test_the_check_looks_at_the_score(
    registry: Registry, score: float | None, law: str, sentence: str
) -> None:
    record = Defense("planted", lambda loader: Scoring(score), rejects=0.05)
    table = {**registry.defenses, "planted": Registration(record, "planted", "planted", "0" * 64)}
    known = replace(registry, defenses=table)
    (chosen,) = (one for one in CHECKS["defense"] if one.name == law)
    found = run_check("defense", "planted", chosen, FIXTURES["defense"](known, record))
    assert sentence in found.sentence and (found.outcome == "fail") == bool(sentence), found
