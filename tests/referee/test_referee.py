"""The referee's laws: it judges what it is shown, in float64, and repairs nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.core.outcomes import NO_ANSWER, Outcomes, Verdict
from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.cell_spec import Candidates
from bench.engine.model_access import SeededNoise
from bench.referee.fresh_model import FreshAnswers, FreshModel
from bench.referee.referee import FRAGILE, Referee, clean_outcomes, goal_reached, judge
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.threat_model import Goal
from tests.fixtures.known_models import UNTARGETED, digits, small_cnn

EPS = Fraction(51, 255)
BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(EPS),
    "L2": L2(Fraction(1)),
    "L1": L1(Fraction(2)),
}


class NaN(nn.Module):
    """No answer at all: whatever is legal is broken."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 10), torch.nan)


def referee(
    module: nn.Module, ball: PerturbationSet, n: int = 64, *, minimises: bool = False
) -> Referee:
    x, y = digits(n)
    aim = torch.full_like(y, -1)
    return Referee(FreshModel(module), ball, UNTARGETED, x, y, aim, minimises=minimises)


def attempt(images: Tensor, items: Tensor | None = None) -> Candidates:
    item = torch.arange(len(images)) if items is None else items
    one = torch.ones_like(item)
    return Candidates(item, images, one, one, one, one, one, item + torch.inf)


def verdicts(judge: Referee, images: Tensor) -> list[int]:
    found: list[int] = judge.judge(attempt(images)).verdict.tolist()
    return found


@pytest.mark.parametrize("name", BALLS)
def test_the_verdict_on_legality_equals_an_independent_one_around_the_edge(name: str) -> None:
    """Against numpy in float64, on images within a hair of ball and box."""
    ball, (x, _) = BALLS[name], digits(64)
    generator = torch.Generator().manual_seed(0)
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[name]
    judge = referee(NaN(), ball)
    for scale in (0.9, 1 - 1e-7, 1 + 1e-7, 1 + 4e-6, 1.1):
        direction = torch.randn(x.shape, generator=generator).double()
        inward = torch.where(x > 0.5, -direction.abs(), direction.abs()).flatten(1)
        norm = torch.linalg.vector_norm(inward, ord=float(order), dim=1, keepdim=True)
        images = (x + (scale * ball.radius * inward / norm).view_as(x)).float()
        exact, clean = images.double().numpy(), x.double().numpy()
        change = (exact - clean).reshape(64, -1)
        distance = np.linalg.norm(change, ord=order, axis=1)
        inside = distance <= ball.radius + (1e-6 if name != "L1" else 1e-6 + 64 * 2**-24)
        boxed = ((exact >= 0) & (exact <= 1)).reshape(64, -1).all(1)
        expected = np.where(boxed, np.where(inside, 1, 2), 3)
        found = np.array(verdicts(judge, images))
        assert np.array_equal(found, expected), scale
        assert len({*found.tolist()} - {3}) == 1


def test_what_lies_outside_is_refused_by_name_and_nothing_else_is_touched() -> None:
    x, _ = digits(64)
    images = x.clone()
    images[0, 0, 0, 0] = x[0, 0, 0, 0] + 0.2 + 1e-3
    images[1, 0, 3, 3] = -0.01
    images[2, 0, 3, 3] = 1.01
    images[3, 0, 3, 3] = torch.nan
    images[4, 0, 3, 3] = torch.inf
    shown = images.clone()
    found = verdicts(referee(NaN(), Linf(EPS)), images)
    assert found[:5] == [
        Verdict.OUT_OF_BALL, Verdict.OUT_OF_BOX, Verdict.OUT_OF_BOX, Verdict.NOT_FINITE,
        Verdict.NOT_FINITE,
    ]  # fmt: skip
    assert set(found[5:]) <= {Verdict.BROKEN, Verdict.ROBUST}
    assert torch.equal(images.nan_to_num(7), shown.nan_to_num(7))


def test_float32_rounding_at_the_edge_is_no_violation() -> None:
    x, _ = digits(64)
    for eps in (Fraction(8, 255), Fraction(51, 255), Fraction(3, 10)):
        ball = Linf(eps)
        images = ball.project(x + 1, x)
        assert set(verdicts(referee(NaN(), ball), images)) <= {0, 1}


def test_a_minimising_attack_beyond_the_radius_has_held_with_its_distance() -> None:
    x, _ = digits(64)
    images = (x + 0.5).clamp(0, 1)
    outcomes = referee(NaN(), L2(Fraction(1)), minimises=True).judge(attempt(images))
    distance = (images - x).double().flatten(1).square().sum(1).sqrt().numpy()
    assert np.allclose(outcomes.distance, distance)
    assert set(outcomes.verdict[distance > 1.001].tolist()) == {Verdict.ROBUST}


@pytest.mark.parametrize(
    "image",
    [torch.zeros(4, 1, 8, 7), torch.zeros(4, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)],
    ids=["shape", "missing axis", "uint8"],
)
def test_what_is_no_image_is_a_sentence(image: Tensor) -> None:
    with pytest.raises(PluginError, match=r"the attack returned .* were expected"):
        referee(small_cnn(), Linf(EPS)).judge(attempt(image, torch.arange(4)))


def test_a_clean_image_that_the_defense_gets_right_has_held() -> None:
    x, y = digits(64)
    right = small_cnn()(x).argmax(1) == y
    found = torch.tensor(verdicts(referee(small_cnn(), Linf(EPS)), x))
    assert torch.equal(found == Verdict.ROBUST, right)


def test_an_answer_that_is_no_number_is_a_wrong_answer() -> None:
    x, y = digits(64)
    outcomes = referee(NaN(), Linf(EPS)).judge(attempt(x))
    assert set(outcomes.verdict.tolist()) == {Verdict.BROKEN}
    assert set(outcomes.label.tolist()) == {-1} and set(outcomes.confidence.tolist()) == {0.0}
    clean = clean_outcomes(FreshModel(NaN()).answer(x, [0]), y)
    assert set(clean.verdict.tolist()) == {Verdict.BROKEN}


def test_engine_and_referee_agree_on_what_is_no_answer() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        answers = torch.zeros(10, 10).index_fill_(1, torch.tensor([3]), value)
        label = predicted_labels(answers, rejects=False)
        assert (label == NO_ANSWER).all()
        known = torch.arange(10)
        for targeted in (False, True):
            assert reaches_goal(label, known, targeted=targeted, rejects=False).all()
            goal = Goal("targeted", "next") if targeted else UNTARGETED
            assert goal_reached(label[None], known, known, goal).all()


def test_what_is_refused_is_kept_without_an_answer() -> None:
    """The model is not asked about it; the page must not show what it says of the clean image."""
    x, rules = digits(64)[0], referee(small_cnn(), Linf(EPS))
    clean = rules.fresh_model.answer(x, [0])
    (chunk,) = judge([attempt(1 - x)], rules, clean, keep=[0, 1])
    assert set(chunk.outcomes.verdict.tolist()) == {Verdict.OUT_OF_BALL}
    assert [(image.label, image.confidence) for image in chunk.images] == [(NO_ANSWER, 0.0)] * 2
    assert [image.clean_label for image in chunk.images] == clean.label[:2].tolist()


def test_claims_of_several_groups_stand_on_draws_that_none_has_seen() -> None:
    """150 claims at once, and again: group by group, ten draws each time and never the same."""
    drawn = list[Tensor]()

    class Listening(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            drawn.append(torch.rand(1))
            return images.flatten(1)[:, :10]

    (x, y), fresh = digits(150), SeededNoise(0, "confirm", torch.device("cpu"))
    rules = Referee(
        FreshModel(Listening()),
        Linf(EPS),
        UNTARGETED,
        x,
        y,
        torch.full_like(y, -1),
        confirmation_noise=fresh,
    )
    both = [rules.confirm(torch.arange(150), x) for _ in range(2)]
    wanted = x.flatten(1)[:, :10].argmax(1) != y
    assert torch.equal(both[0], wanted) and torch.equal(both[1], wanted)
    assert len(drawn) == len(torch.unique(torch.cat(drawn))) == 2 * 3 * 10


class Threshold(nn.Module):
    """Class 1 where the first pixel reaches a level, class 0 below; margins are tiny there."""

    def __init__(self, level: float, gap: float = 1.0) -> None:
        super().__init__()
        self.level, self.gap = level, gap

    def forward(self, images: Tensor) -> Tensor:
        over = (images[:, 0, 0, 0] >= self.level).float() * 2 - 1
        zeros = torch.zeros(len(images), 8)
        pair = torch.stack([10 - self.gap * over, 10 + self.gap * over], 1)
        return torch.cat([pair, zeros], 1)


def one(module: nn.Module, value: float, eps: Fraction = EPS) -> Outcomes:
    """One black image of class 0 whose first pixel was raised to `value`."""
    x, y = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    image = x.clone()
    image[0, 0, 0, 0] = value
    rules = Referee(FreshModel(module), Linf(eps), Goal(), x, y, torch.full_like(y, -1))
    return rules.judge(attempt(image))


@pytest.mark.row("G18")
def test_eight_bits_round_towards_the_clean_pixel() -> None:
    between = 20.6 / 255
    assert one(Threshold(20.5 / 255), between).verdict == [Verdict.BROKEN]
    assert one(Threshold(20.5 / 255), between).eight_bit == [False]
    assert one(Threshold(19.9 / 255), between).eight_bit == [True]
    on_the_grid = float(torch.tensor(51.0) / 255)
    assert one(Threshold(50.9 / 255), on_the_grid).eight_bit == [True]


def test_a_win_by_a_hair_is_marked_fragile() -> None:
    assert one(Threshold(0.1, gap=1.0), 0.15).fragile == [False]
    assert one(Threshold(0.1, gap=FRAGILE), 0.15).fragile == [True]
    assert one(Threshold(0.3, gap=FRAGILE), 0.15).fragile == [False]


def test_chunks_carry_the_sample_and_the_exact_images() -> None:
    x, y = digits(64)
    rules = referee(small_cnn(), Linf(EPS))
    clean = FreshModel(small_cnn()).answer(x, [0])
    images = (x + 0.1).clamp(0, 1)
    (chunk,) = judge([attempt(images)], rules, clean, keep=[3, 9], keep_all=True)
    assert [kept.item for kept in chunk.images] == [3, 9]
    assert np.array_equal(chunk.images[0].original, (x[3] * 255).round().byte().numpy())
    assert np.array_equal(chunk.images[1].adversarial, images[9].numpy())
    assert chunk.images[0].true_label == int(y[3])
    assert chunk.exact is not None and np.array_equal(chunk.exact[1], images.numpy())
    (bare,) = judge([attempt(images)], rules, clean, keep=())
    assert bare.images == () and bare.exact is None


class Coin(nn.Module):
    """Right with a given probability, on each call anew."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        label = (torch.rand(len(images)) >= self.share).long()
        return nn.functional.one_hot(label, 10).float()


@pytest.mark.parametrize(("share", "broken"), [(0.95, 0.0), (0.02, 1.0)])
def test_random_defenses_are_judged_by_vote(share: float, broken: float) -> None:
    """A coin that is right 19 times in 20 is wrong on 12 of 20 draws once in 10^11."""
    x, y = torch.rand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    noise = SeededNoise(0, "judge", torch.device("cpu"))
    rules = Referee(
        FreshModel(Coin(share), noise=noise), Linf(EPS), Goal(), x, y, torch.full_like(y, -1),
        confirmation_noise=SeededNoise(0, "confirm", torch.device("cpu")),
    )  # fmt: skip
    verdict = rules.judge(attempt(x)).verdict
    assert (verdict == Verdict.BROKEN).mean() == broken
    assert rules.confirm(torch.arange(64), x).double().mean() == pytest.approx(broken, abs=0.05)
    again = rules.judge(attempt(x)).verdict
    assert np.array_equal(verdict, again)


def test_the_vote_needs_six_tenths() -> None:
    y, aim = torch.zeros(1, dtype=torch.int64), torch.full((1,), -1)
    for wrong_ones, expected in ((11, False), (12, True)):
        votes = torch.cat([torch.ones(wrong_ones, 1), torch.zeros(20 - wrong_ones, 1)]).long()
        assert bool(goal_reached(votes, y, aim, Goal())) is expected


def test_a_targeted_goal_counts_its_target_alone() -> None:
    """No finite answer (-1) is a failure of the defense under any goal."""
    votes, y = torch.tensor([[3, 4, 0, -1]]), torch.zeros(4, dtype=torch.int64)
    aim = torch.full((4,), 3)
    assert goal_reached(votes, y, aim, Goal("targeted", "next")).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_an_empty_question_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        FreshModel(small_cnn()).answer(torch.zeros(0, 1, 8, 8), [])


def test_an_answer_does_not_depend_on_its_group() -> None:
    x, _ = digits(150)
    court = FreshModel(small_cnn())
    whole: FreshAnswers = court.answer(x, range(3))
    parts = torch.cat([court.answer(x[i : i + 7], [0]).logits for i in range(0, 150, 7)])
    assert torch.equal(whole.logits, parts)
