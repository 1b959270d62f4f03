"""Tests of bench.referee.referee: verdicts in float64, and no candidate is repaired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core.errors import PluginError
from bench.core.outcomes import NO_ANSWER, REJECTED, Chunk, Outcomes, Verdict, refusals
from bench.engine.answers import predicted_labels, reaches_goal
from bench.engine.cell_spec import Candidates
from bench.engine.machine import this_machine
from bench.engine.model_access import SeededNoise
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import (
    FRAGILE,
    Referee,
    clean_errors,
    clean_outcomes,
    goal_reached,
    judge,
)
from bench.results.export import write_images
from bench.store import Store
from bench.threats.norms import L1, L2, Linf, PerturbationSet
from bench.threats.sparse import L0
from bench.threats.threat_model import Goal
from tests.fixtures.known_models import UNTARGETED, digits, small_cnn
from tests.fixtures.rejecting_defenses import (
    BALL,
    TARGETED,
    FirstPixelClassifier,
    always_rejects,
    grey_images,
    never_rejects,
    rejects_by_second_pixel,
)
from tests.fixtures.small_store import World

EPS = Fraction(51, 255)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/bench.db") as opened:
        yield opened


BALLS: dict[str, PerturbationSet] = {
    "Linf": Linf(EPS),
    "L2": L2(Fraction(1)),
    "L1": L1(Fraction(2)),
}


class NaNLogits(nn.Module):
    """Returns NaN, so that every admissible image is broken."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 10), torch.nan)


def referee(
    module: nn.Module, ball: PerturbationSet, n: int = 64, *, minimises: bool = False
) -> Referee:
    x, y = digits(n)
    target = torch.full_like(y, -1)
    return Referee(FreshModel(module), ball, UNTARGETED, x, y, target, minimises=minimises)


def candidates(images: Tensor, items: Tensor | None = None) -> Candidates:
    item = torch.arange(len(images)) if items is None else items
    ones = torch.ones_like(item)
    return Candidates(item, images, ones, ones, ones, ones, ones, item + torch.inf)


def verdicts(judge: Referee, images: Tensor) -> list[int]:
    found: list[int] = judge.judge(candidates(images)).verdict.tolist()
    return found


@pytest.mark.parametrize("name", BALLS)
def test_ball_and_box_checks_equal_those_of_numpy_near_the_boundary(name: str) -> None:
    """Compared with numpy in float64, on images close to the boundary of ball and box."""
    ball, (x, _) = BALLS[name], digits(64)
    generator = torch.Generator().manual_seed(0)
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[name]
    judge = referee(NaNLogits(), ball)
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


def test_each_kind_of_invalid_image_has_its_own_verdict_and_none_is_changed() -> None:
    x, _ = digits(64)
    images = x.clone()
    images[0, 0, 0, 0] = x[0, 0, 0, 0] + 0.2 + 1e-3
    images[1, 0, 3, 3] = -0.01
    images[2, 0, 3, 3] = 1.01
    images[3, 0, 3, 3] = torch.nan
    images[4, 0, 3, 3] = torch.inf
    shown = images.clone()
    found = verdicts(referee(NaNLogits(), Linf(EPS)), images)
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
        assert set(verdicts(referee(NaNLogits(), ball), images)) <= {0, 1}


def test_a_candidate_of_a_minimising_attack_outside_the_ball_is_robust_with_its_distance() -> None:
    x, _ = digits(64)
    images = (x + 0.5).clamp(0, 1)
    outcomes = referee(NaNLogits(), L2(Fraction(1)), minimises=True).judge(candidates(images))
    distance = (images - x).double().flatten(1).square().sum(1).sqrt().numpy()
    assert np.allclose(outcomes.distance, distance)
    assert set(outcomes.verdict[distance > 1.001].tolist()) == {Verdict.ROBUST}


@pytest.mark.parametrize(
    "image",
    [torch.zeros(4, 1, 8, 7), torch.zeros(4, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)],
    ids=["shape", "missing axis", "uint8"],
)
def test_candidates_of_wrong_shape_or_type_are_a_plugin_error(image: Tensor) -> None:
    with pytest.raises(PluginError, match=r"the attack returned .* were expected"):
        referee(small_cnn(), Linf(EPS)).judge(candidates(image, torch.arange(4)))


def test_a_correctly_classified_clean_image_is_robust() -> None:
    x, y = digits(64)
    right = small_cnn()(x).argmax(1) == y
    found = torch.tensor(verdicts(referee(small_cnn(), Linf(EPS)), x))
    assert torch.equal(found == Verdict.ROBUST, right)


@pytest.mark.parametrize("change", [0.5, 1e-7])
def test_one_place_more_than_a_sparse_ball_allows_is_refused(change: float) -> None:
    """Right: two changed pixels are in L0 of two, three are not, however small the change."""
    x, y = digits(3)
    x = x.clamp(0.1, 0.4)
    images = x.clone()
    for row, places in enumerate((0, 2, 3)):
        images[row].view(-1)[:places] += change
    assert [int((images[row] != x[row]).sum()) for row in range(3)] == [0, 2, 3]
    target = torch.full_like(y, -1)
    judging = Referee(FreshModel(NaNLogits()), L0(Fraction(2)), UNTARGETED, x, y, target)
    assert verdicts(judging, images) == [Verdict.BROKEN, Verdict.BROKEN, Verdict.OUT_OF_BALL]


def test_a_nan_answer_is_a_wrong_answer() -> None:
    x, y = digits(64)
    outcomes = referee(NaNLogits(), Linf(EPS)).judge(candidates(x))
    assert set(outcomes.verdict.tolist()) == {Verdict.BROKEN}
    assert set(outcomes.label.tolist()) == {-1} and set(outcomes.confidence.tolist()) == {0.0}
    clean = clean_outcomes(FreshModel(NaNLogits()).answer(x, [0]), y)
    assert set(clean.verdict.tolist()) == {Verdict.BROKEN}


def test_engine_and_referee_agree_on_missing_answers() -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        answers = torch.zeros(10, 10).index_fill_(1, torch.tensor([3]), value)
        label = predicted_labels(answers, rejects=False)
        assert (label == NO_ANSWER).all()
        known = torch.arange(10)
        for targeted in (False, True):
            assert reaches_goal(label, known, targeted=targeted, rejects=False).all()
            goal = Goal("targeted", "next") if targeted else UNTARGETED
            assert goal_reached(label[None], known, known, goal).all()


def test_a_refused_image_is_kept_without_an_answer() -> None:
    """A refused image is not evaluated, so no label of another image may be shown for it."""
    x, judging = digits(64)[0], referee(small_cnn(), Linf(EPS))
    clean = judging.fresh_model.answer(x, [0])
    (chunk,) = judge([candidates(1 - x)], judging, clean, keep=[0, 1])
    assert set(chunk.outcomes.verdict.tolist()) == {Verdict.OUT_OF_BALL}
    assert [(image.label, image.confidence) for image in chunk.images] == [(NO_ANSWER, 0.0)] * 2
    assert [image.clean_label for image in chunk.images] == clean.label[:2].tolist()


@pytest.mark.parametrize(("rows", "groups"), [(64, 3), (128, 2), (512, 1)])
def test_confirmations_use_new_draws_in_every_group(rows: int, groups: int) -> None:
    """Each group draws ten times at each confirmation, and no draw is repeated."""
    drawn = list[Tensor]()

    class RecordsDraws(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            drawn.append(torch.rand(1))
            return images.flatten(1)[:, :10]

    (x, y), fresh = digits(150), SeededNoise(0, "confirm", torch.device("cpu"), rows=rows)
    judging = Referee(
        FreshModel(RecordsDraws()),
        Linf(EPS),
        UNTARGETED,
        x,
        y,
        torch.full_like(y, -1),
        confirmation_noise=fresh,
    )
    both = [judging.confirm(torch.arange(150), x) for _ in range(2)]
    expected = x.flatten(1)[:, :10].argmax(1) != y
    assert torch.equal(both[0], expected) and torch.equal(both[1], expected)
    assert len(drawn) == len(torch.unique(torch.cat(drawn))) == 2 * groups * 10


class RandomLabels(nn.Module):
    """Class 1 with the probability in the first pixel of each image, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        first = images.flatten(1)[:, 0]
        return nn.functional.one_hot((torch.rand(len(images)) < first).long(), 10).float()


@pytest.mark.parametrize(
    ("chances", "drawn"), [([0.0, 0.0], 2), ([0.5, 0.0], None), ([1.0, 0.0], 10), ([0.95] * 64, 10)]
)
def test_confirmation_stops_once_every_image_has_failed_twice(
    chances: list[float], drawn: int | None
) -> None:
    """Right: what ten draws at the same numbers decide, and the next confirmation begins at 10."""
    x = torch.tensor(chances)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    y = torch.zeros(len(x), dtype=torch.int64)
    module, fresh = RandomLabels(), SeededNoise(0, "confirm", torch.device("cpu"))
    judging = Referee(
        FreshModel(module), Linf(EPS), UNTARGETED, x, y, y - 1, confirmation_noise=fresh
    )
    found = judging.confirm(torch.arange(len(x)), x)
    assert drawn is None or module.calls == drawn
    assert fresh.calls[0] == 10
    again = SeededNoise(0, "confirm", torch.device("cpu"))
    again.begin(0)
    votes = []
    for _ in range(10):
        with again.scope():
            padded = torch.cat([x, x[-1:].expand(64 - len(x), -1, -1, -1)])
            votes.append(RandomLabels()(padded).argmax(1)[: len(x)])
    assert torch.equal(found, torch.stack(votes).sum(0) >= 9)


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_more_rows_than_a_group_has_are_confirmed_in_parts(repeats: int) -> None:
    """Several restarts of an item may wait for one check: 64 items, up to 320 rows."""
    x, y = digits(64)
    pixels = FreshModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    fresh = SeededNoise(0, "confirm", torch.device("cpu"))
    target = torch.full_like(y, -1)
    judging = Referee(pixels, Linf(EPS), UNTARGETED, x, y, target, confirmation_noise=fresh)
    items = torch.arange(64).repeat(repeats)
    expected = pixels.labels(x)[0] != y
    assert torch.equal(judging.confirm(items, x[items]), expected.repeat(repeats))


class Threshold(nn.Module):
    """Class 1 where the first pixel reaches `level`, class 0 below, with a margin of 2 `gap`."""

    def __init__(self, level: float, gap: float = 1.0) -> None:
        super().__init__()
        self.level, self.gap = level, gap

    def forward(self, images: Tensor) -> Tensor:
        over = (images[:, 0, 0, 0] >= self.level).float() * 2 - 1
        zeros = torch.zeros(len(images), 8)
        pair = torch.stack([10 - self.gap * over, 10 + self.gap * over], 1)
        return torch.cat([pair, zeros], 1)


def outcome_of_first_pixel(module: nn.Module, value: float, eps: Fraction = EPS) -> Outcomes:
    """The outcome of a black image of class 0 whose first pixel is raised to `value`."""
    x, y = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    image = x.clone()
    image[0, 0, 0, 0] = value
    judging = Referee(FreshModel(module), Linf(eps), Goal(), x, y, torch.full_like(y, -1))
    return judging.judge(candidates(image))


@pytest.mark.row("G18")
def test_eight_bits_round_towards_the_clean_pixel() -> None:
    between = 20.6 / 255
    assert outcome_of_first_pixel(Threshold(20.5 / 255), between).verdict == [Verdict.BROKEN]
    assert outcome_of_first_pixel(Threshold(20.5 / 255), between).eight_bit == [False]
    assert outcome_of_first_pixel(Threshold(19.9 / 255), between).eight_bit == [True]
    on_the_grid = float(torch.tensor(51.0) / 255)
    assert outcome_of_first_pixel(Threshold(50.9 / 255), on_the_grid).eight_bit == [True]


@pytest.mark.row("G18")
@pytest.mark.parametrize("eps", [Fraction(8, 255), Fraction(51, 255)])
def test_exported_images_saved_with_8_bits_stay_in_the_ball(
    eps: Fraction, tmp_path: Path, store: Store
) -> None:
    """Exported, rounded towards the clean pixel, saved as PNG and read again: in whole levels."""
    x, y = digits(64)
    x = (x * 255).round() / 255  # images as files hold them
    images = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(small_cnn()(images), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    size = 0.9 + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    adversarial = Linf(eps).project(x + size * float(eps) * gradient.sign(), x)
    judging = Referee(FreshModel(small_cnn()), Linf(eps), UNTARGETED, x, y, torch.full_like(y, -1))
    clean = judging.fresh_model.answer(x, [0])
    (chunk,) = judge([candidates(adversarial)], judging, clean, keep_all=True)
    saved = saved_as_png(exported(store, chunk, tmp_path), x, tmp_path)
    limit = int(eps * 255)
    change = (saved * 255).round().int() - (x * 255).round().int()
    assert change.abs().amax() <= limit and change.abs().amax() >= limit - 1
    broken = torch.from_numpy(chunk.outcomes.verdict == Verdict.BROKEN)
    again = broken & (small_cnn()(saved).argmax(1) != y)
    assert torch.equal(again, torch.from_numpy(chunk.outcomes.eight_bit))
    assert 0 < again.sum() <= broken.sum()


def exported(store: Store, chunk: Chunk, folder: Path) -> Tensor:
    """The images of a chunk, recorded and then exported: [n, C, H, W]."""
    world = World(store, n=64)
    world.threat("linf", "pgd")
    world.attack("pgd")
    world.defense("d")
    assert chunk.exact is not None
    world.record(world.cell("d", "pgd"), chunk.outcomes, exact=chunk.exact[1])
    write_images(store, "linf", "d", "pgd", folder / "images.safetensors")
    return load_file(folder / "images.safetensors")["adv"]


def saved_as_png(images: Tensor, x: Tensor, folder: Path) -> Tensor:
    """Images [n, 1, H, W], rounded towards x, written as 8-bit files and read again in [0, 1]."""
    level = np.rint(x.double().numpy() * 255)
    levels = level + np.trunc(np.round(images.double().numpy() * 255 - level, 4))
    read = []
    for row, pixels in enumerate(levels[:, 0]):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")
        read.append(np.asarray(Image.open(folder / f"{row}.png")))
    return torch.from_numpy(np.stack(read)[:, None]).float() / 255


@pytest.mark.row("G04")
def test_the_worst_image_of_a_linear_model_lowers_confidence_as_eps_grows() -> None:
    """Closed form: confidence falls with eps, and a changed label means confidence up to 1/2."""
    weights = torch.randn(64, generator=torch.Generator().manual_seed(0))

    class Linear(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = (images - 0.5).flatten(1) @ weights
            return torch.stack([-score, score], 1)

    x = 0.5 + 0.02 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = Linear()(x).argmax(1)
    worse = -(2 * y - 1).view(-1, 1, 1, 1) * weights.view(1, 1, 8, 8).sign()
    before, broken = np.ones(64, np.float32), np.zeros(64, np.bool_)
    for levels in (0, 1, 2, 4, 8, 16):
        eps = Fraction(levels, 255)
        ball = Linf(eps) if levels else Linf(Fraction(1, 255))
        judging = Referee(FreshModel(Linear()), ball, UNTARGETED, x, y, torch.full_like(y, -1))
        found = judging.judge(candidates(x + 0.999 * float(eps) * worse))
        margin = 2 * (Linear()(x).amax(1).double() - 0.999 * float(eps) * weights.abs().sum())
        assert np.allclose(found.true_confidence, margin.sigmoid(), atol=1e-4)
        assert (found.true_confidence < before).all() and (found.true_confidence >= 0).all()
        broken = found.verdict == Verdict.BROKEN
        assert (found.true_confidence[broken] <= 0.5).all()
        assert (found.true_confidence[~broken] >= 0.5).all()
        before = found.true_confidence
    assert broken.any()


def test_a_success_with_a_tiny_margin_is_marked_fragile() -> None:
    assert outcome_of_first_pixel(Threshold(0.1, gap=1.0), 0.15).fragile == [False]
    assert outcome_of_first_pixel(Threshold(0.1, gap=FRAGILE), 0.15).fragile == [True]
    assert outcome_of_first_pixel(Threshold(0.3, gap=FRAGILE), 0.15).fragile == [False]


def test_chunks_carry_the_sample_and_the_exact_images() -> None:
    x, y = digits(64)
    judging = referee(small_cnn(), Linf(EPS))
    clean = FreshModel(small_cnn()).answer(x, [0])
    images = (x + 0.1).clamp(0, 1)
    (chunk,) = judge([candidates(images)], judging, clean, keep=[3, 9], keep_all=True)
    assert [kept.item for kept in chunk.images] == [3, 9]
    assert np.array_equal(chunk.images[0].original, (x[3] * 255).round().byte().numpy())
    assert np.array_equal(chunk.images[1].adversarial, images[9].numpy())
    assert chunk.images[0].true_label == int(y[3])
    assert chunk.exact is not None and np.array_equal(chunk.exact[1], images.numpy())
    (without_images,) = judge([candidates(images)], judging, clean, keep=())
    assert without_images.images == () and without_images.exact is None


class RandomLabel(nn.Module):
    """Returns the right label with a given probability, drawn at each call."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        label = (torch.rand(len(images)) >= self.share).long()
        return nn.functional.one_hot(label, 10).float()


@pytest.mark.parametrize(("share", "broken"), [(0.95, 0.0), (0.02, 1.0)])
def test_random_defenses_are_judged_by_vote(share: float, broken: float) -> None:
    """A model that is right 19 times in 20 is wrong on 12 of 20 draws once in 10^11."""
    x, y = torch.rand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    noise = SeededNoise(0, "judge", torch.device("cpu"))
    judging = Referee(
        FreshModel(RandomLabel(share), noise=noise), Linf(EPS), Goal(), x, y,
        torch.full_like(y, -1),
        confirmation_noise=SeededNoise(0, "confirm", torch.device("cpu")),
    )  # fmt: skip
    verdict = judging.judge(candidates(x)).verdict
    assert (verdict == Verdict.BROKEN).mean() == broken
    assert judging.confirm(torch.arange(64), x).double().mean() == pytest.approx(broken, abs=0.05)
    again = judging.judge(candidates(x)).verdict
    assert np.array_equal(verdict, again)


def test_six_tenths_of_the_votes_must_reach_the_goal() -> None:
    y, target = torch.zeros(1, dtype=torch.int64), torch.full((1,), -1)
    for wrong_ones, expected in ((11, False), (12, True)):
        votes = torch.cat([torch.ones(wrong_ones, 1), torch.zeros(20 - wrong_ones, 1)]).long()
        assert bool(goal_reached(votes, y, target, Goal())) is expected


def test_a_targeted_goal_counts_votes_for_its_target_only() -> None:
    """A missing answer (-1) reaches every goal."""
    votes, y = torch.tensor([[3, 4, 0, -1]]), torch.zeros(4, dtype=torch.int64)
    target = torch.full((4,), 3)
    assert goal_reached(votes, y, target, Goal("targeted", "next")).tolist() == [
        True,
        False,
        False,
        True,
    ]


def rejecting_referee(score: Any, n: int = 6) -> Referee:
    x, y = grey_images(n)
    return Referee(
        FreshModel(FirstPixelClassifier(score), rejects=True),
        BALL,
        UNTARGETED,
        x,
        y,
        torch.full_like(y, -1),
    )


def judged(score: Any, first: Sequence[float]) -> Outcomes:
    judge = rejecting_referee(score, len(first))
    images = judge.x[:].clone()
    images[:, 0, 0, 0] = torch.tensor(first)
    item = torch.arange(len(first))
    one = torch.ones_like(item)
    return judge.judge(Candidates(item, images, one, one, one, one, one, item + torch.inf))


def test_an_adversarial_example_is_wrong_and_accepted() -> None:
    def score(images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0]
        return torch.where(first > 0.58, torch.nan, first - 0.55)

    found = judged(score, [0.45, 0.53, 0.56, 0.6, 0.9])
    robust, broken = Verdict.ROBUST, Verdict.BROKEN
    assert found.verdict.tolist() == [robust, broken, robust, broken, Verdict.OUT_OF_BALL]
    assert found.label.tolist() == [0, 1, 1, NO_ANSWER, NO_ANSWER]
    expected = np.array([-0.1, -0.02, 0.01, -np.inf, -np.inf], np.float32)
    assert np.allclose(found.rejection, expected, atol=1e-6)


@pytest.mark.parametrize(("score", "confirmed"), [(never_rejects, True), (always_rejects, False)])
def test_confirmations_include_the_rejection_score(score: Any, confirmed: bool) -> None:
    """For random and for deterministic defenses."""
    x, y = grey_images(8)
    images = x + 0.1
    fresh = SeededNoise(0, "confirm", torch.device("cpu"))
    for noise in (fresh, None):
        fresh_model = FreshModel(FirstPixelClassifier(score), rejects=True)
        judge = Referee(
            fresh_model, BALL, UNTARGETED, x, y, torch.full_like(y, -1), confirmation_noise=noise
        )
        assert judge.confirm(torch.arange(8), images).tolist() == [confirmed] * 8


def test_a_rejected_clean_image_counts_as_misclassified() -> None:
    x, y = grey_images(4)
    x[1:3, 0, 0, 1] = 0.7
    y[2:] = 1
    answer = FreshModel(FirstPixelClassifier(rejects_by_second_pixel(0.5)), rejects=True).answer(
        x, [0]
    )
    found = clean_outcomes(answer, y)
    assert found.verdict.tolist() == [Verdict.ROBUST, *[Verdict.BROKEN] * 3]
    assert np.allclose(found.rejection, [-0.05, 0.2, 0.2, -0.05])
    assert found.label.tolist() == [0, 0, 0, 0]


def test_rejecting_votes_neither_reach_the_goal_nor_name_the_label() -> None:
    """Six of ten draws must reach the goal; on a clean image six must miss the label."""
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


def test_the_true_class_of_each_candidate_is_recorded() -> None:
    """Confidence, rank and loss against torch's own, on the images as they were offered."""
    x, y = digits(64)
    images = x + 0.19 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
    images = images.clamp(0, 1)
    y = (y + torch.arange(64)) % 10  # most labels are wrong, so that every rank occurs
    judging = Referee(FreshModel(small_cnn()), Linf(EPS), UNTARGETED, x, y, torch.full_like(y, -1))
    found = judging.judge(candidates(images))
    logits = small_cnn()(images).double().detach()
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    own = logits.gather(1, y[:, None])
    assert np.allclose(found.loss, loss, rtol=1e-5)
    assert np.allclose(found.true_confidence, (-loss).exp(), rtol=1e-5)
    assert found.true_rank.tolist() == (logits > own).sum(1).tolist()
    assert ((found.true_rank == 0) == (found.label == y.numpy())).all()
    assert set(found.true_rank.tolist()) == set(range(10))


def test_of_equal_logits_the_predicted_class_ranks_first() -> None:
    class Equal(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 10)

    x, y = digits(64)
    found = referee(Equal(), Linf(EPS)).judge(candidates(x))
    assert found.true_rank.tolist() == y.tolist()
    assert ((found.true_rank == 0) == (found.label == y.numpy())).all()


def test_nothing_is_recorded_of_the_true_class_on_inadmissible_images() -> None:
    """Refused images, and those that a minimising attack found outside the ball."""
    x, _ = digits(64)
    images = x.clone()
    images[0] = 1 - x[0]
    images[1, 0, 0, 0] = -0.1
    images[2, 0, 0, 0] = torch.nan
    found = referee(small_cnn(), Linf(EPS)).judge(candidates(images))
    assert np.isnan(found.true_confidence).tolist() == [True] * 3 + [False] * 61
    assert np.isnan(found.loss).tolist() == [True] * 3 + [False] * 61
    assert (found.true_rank < 0).tolist() == [True] * 3 + [False] * 61
    far = referee(small_cnn(), Linf(EPS), minimises=True).judge(candidates((x + 0.5).clamp(0, 1)))
    assert (far.verdict == Verdict.ROBUST).all() and np.isnan(far.loss).all()


def test_an_answer_that_is_not_finite_has_no_loss_and_the_last_rank() -> None:
    x, y = digits(64)
    answer = FreshModel(NaNLogits()).answer(x, [0])
    judged_images = referee(NaNLogits(), Linf(EPS)).judge(candidates(x))
    for found in (judged_images, clean_outcomes(answer, y)):
        assert np.isnan(found.loss).all()
        assert set(found.true_confidence.tolist()) == {0.0}
        assert set(found.true_rank.tolist()) == {10}


def test_the_clean_pass_records_the_true_class_too() -> None:
    x, y = digits(64)
    answer = FreshModel(small_cnn()).answer(x, [0])
    found = clean_outcomes(answer, y)
    again = referee(small_cnn(), Linf(EPS)).judge(candidates(x))
    for name in ("true_confidence", "true_rank", "loss"):
        assert np.array_equal(getattr(found, name), getattr(again, name)), name
    assert set(found.target.tolist()) == {-1} and set(found.claimed.tolist()) == {0}


def test_the_true_class_of_a_random_defense_is_that_of_the_mean_softmax() -> None:
    class Flips(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 10)
            logits[:, 0] = 4 * torch.randn(1)
            return logits

    x, y = digits(64)
    noise = SeededNoise(0, "referee", torch.device("cpu"))
    answer = FreshModel(Flips(), noise=noise).answer(x, [0])
    predicted = clean_outcomes(answer, answer.label)
    assert np.allclose(predicted.true_confidence, answer.confidence.numpy(), rtol=1e-6)
    assert np.allclose(predicted.loss, -answer.confidence.log().numpy(), rtol=1e-6)
    found = clean_outcomes(answer, torch.zeros_like(y))
    of_mean = answer.logits.double().softmax(1)[:, 0].numpy()
    assert not np.allclose(found.true_confidence, of_mean, atol=1e-2)


def test_a_claim_that_the_fresh_model_does_not_confirm_is_counted() -> None:
    x, y = digits(64)
    right = (small_cnn()(x).argmax(1) == y).numpy()
    offered = candidates(x)
    offered = offered._replace(step=torch.where(torch.arange(64) < 20, 3, -1))
    found = referee(small_cnn(), Linf(EPS)).judge(offered)
    assert found.claimed.tolist() == [1] * 20 + [0] * 44
    assert refusals(found).not_adversarial == right[:20].sum() > 0
    assert refusals(found).total == right[:20].sum()


def test_the_target_class_of_each_item_is_recorded() -> None:
    x, y = digits(64)
    judging = Referee(
        FreshModel(small_cnn()), Linf(EPS), Goal("targeted", "next"), x, y, (y + 1) % 10
    )
    rows = torch.tensor([5, 3, 60])
    found = judging.judge(candidates(x[rows], rows))
    assert found.target.tolist() == ((y + 1) % 10)[rows].tolist()


def test_each_chunk_names_the_machine_class() -> None:
    x, judging = digits(64)[0], referee(small_cnn(), Linf(EPS))
    (chunk,) = judge([candidates(x)], judging, judging.fresh_model.answer(x, [0]))
    assert chunk.machine == this_machine(torch.device("cpu"))
    assert chunk.without([3]).machine == chunk.machine
