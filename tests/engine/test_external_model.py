"""A run of its own behind the guard: counted, stopped, judged, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.contract.fixtures import ModelState, RandomState
from bench.core.cells import Numeric
from bench.core.errors import PluginError
from bench.core.outcomes import Verdict
from bench.data import datasets
from bench.engine.cell_spec import Candidates, CellSpec
from bench.engine.external_model import ExternalLedger, ExternalModel
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess, SeededNoise
from bench.engine.problem import BATCH_UNIT
from bench.engine.runner import run_attack
from bench.evaluation.built_defense import BuiltDefense, RunSettings
from bench.plugin import Access, Attack, ExternalProblem
from bench.referee.fresh_model import FreshModel
from bench.referee.referee import Referee
from bench.registry.registry import Registry
from bench.threats.access import Budget
from bench.threats.norms import L2, Linf, PerturbationSet
from bench.threats.threat_model import Goal
from bench.training.tasks import build_trained
from tests.fixtures.known_models import Result, digits, run_and_judge, small_cnn

EPS = Fraction(51, 255)
LINF = Linf(EPS)
FREE = Budget()
Run = Callable[[ExternalProblem], Any]


@dataclass
class Whole:
    """An attack whose run is a function at hand."""

    play: Run
    needs: Access = Access.GRADIENTS
    rows: int = 64
    name: str = "whole"
    source: str = ""
    minimises: bool = False

    def run(self, problem: ExternalProblem) -> Any:
        return self.play(problem)


def attack(run: Run, **options: Any) -> Attack:
    """Typed as the registry hands it on."""
    found: Attack = cast(Any, Whole(run, **options))
    return found


def uphill(problem: ExternalProblem, adv: Tensor) -> Tensor:
    """The gradient of the cross-entropy, as a library would take it."""
    leaf = adv.detach().clone().requires_grad_()
    loss = nn.functional.cross_entropy(problem.model(leaf), problem.y, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def climb(problem: ExternalProblem, steps: int = 10) -> Tensor:
    """Sign steps from a start that the global generator draws."""
    x, radius = problem.x, problem.ball.radius
    adv = problem.ball.project(x + radius * (2 * torch.rand_like(x) - 1), x)
    for _ in range(steps):
        adv = problem.ball.project(adv + radius / 4 * uphill(problem, adv).sign(), x)
    return adv


class Certain(nn.Module):
    """Right whatever is asked of it near the digits, and with a slope all the same."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = digits(150)
        near = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        return nn.functional.one_hot(y[near], 10).float() * (5 + images.flatten(1).mean(1)[:, None])


def cell(
    by: Attack,
    model: nn.Module | None = None,
    n: int = BATCH_UNIT,
    ball: PerturbationSet = LINF,
    **options: Any,
) -> CellSpec:
    """A cell over the first n digits; `options` replace fields of the game."""
    model = model or small_cnn()
    x, y = digits(n)
    door = ModelAccess(model, noise=options.get("noise"))
    clean = ModelAccess(small_cnn() if options.get("noise") else model).logits(x)
    game = CellSpec(
        attack=by, model_access=door, defense=door, ball=ball, goal=Goal(), budget=FREE, x=x, y=y,
        target=torch.full_like(y, -1), clean_logits=clean, reached_on_clean=clean.argmax(1) != y, seed=0,
    )  # fmt: skip
    return replace(game, **options)


def referee(game: CellSpec) -> Referee:
    random = game.noise is not None
    judging, fresh = (noise(role) if random else None for role in ("judge", "confirm"))
    court = FreshModel(copy.deepcopy(game.defense.module), noise=judging)
    return Referee(
        court, game.ball, game.goal, game.x, game.y, game.target, confirmation_noise=fresh
    )


def noise(role: str) -> SeededNoise:
    return SeededNoise(0, role, torch.device("cpu"))


def played(game: CellSpec, **options: Any) -> Candidates:
    """All attempts, in item order."""
    parts = list(run_attack(game, referee(game).confirm, **options))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = joined[0].argsort()
    return Candidates(*(column[order] for column in joined))


def against(run: Run, n: int = BATCH_UNIT, budget: Budget = FREE, **options: Any) -> Result:
    """The referee's word on a run against the small network."""
    return run_and_judge(attack(run, **options), small_cnn(), *digits(n), LINF, budget=budget)


def hooked(model: nn.Module) -> dict[str, int]:
    """Rows that pass the model, as hooks of its own see them."""
    rows = {"forward": 0, "backward": 0}

    def add(name: str, answer: Any) -> None:
        rows[name] += len(answer)

    model.register_forward_hook(lambda _, __, out: add("forward", out))
    model.register_full_backward_hook(lambda _, __, out: add("backward", *out))
    return rows


def twice_back(problem: ExternalProblem) -> Tensor:
    """Three forwards and four gradients a row: one graph is walked twice, one not at all."""
    uphill(problem, problem.x)
    leaf = problem.x.clone().requires_grad_()
    logits = problem.model(leaf)
    for column in (0, 1, 2):
        torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=True)
    with torch.no_grad():
        problem.model(problem.x)
    return problem.x


def test_counts_equal_those_of_independent_hooks() -> None:
    model = Certain()
    game = cell(attack(twice_back), model)
    rows = hooked(model)
    found = played(game)
    looks = int(found.final_checks.sum())
    assert (int(found.forwards.sum()), int(found.gradients.sum()), looks) == (96, 128, 32)
    assert rows == {"forward": 96 + looks, "backward": 128}


def test_one_row_pays_for_all_its_images() -> None:
    def population(problem: ExternalProblem) -> Tensor:
        leaf = problem.x.repeat(5, 1, 1, 1).requires_grad_()
        torch.autograd.grad(problem.model(leaf).sum(), leaf)
        problem.model(problem.x)
        return problem.x

    model = Certain()
    game = cell(attack(population, rows=1), model)
    rows = hooked(model)
    found = played(game)
    assert (
        found.forwards.tolist() == [6] * BATCH_UNIT and found.gradients.tolist() == [5] * BATCH_UNIT
    )
    assert rows["forward"] == 7 * BATCH_UNIT and rows["backward"] == 5 * BATCH_UNIT


def test_rows_named_pay_for_themselves() -> None:
    def some(problem: ExternalProblem) -> Tensor:
        rows = torch.tensor([9, 2])
        with problem.model.for_rows(rows):
            problem.model(problem.x[rows])
        problem.model(problem.x)
        return problem.x

    found = played(cell(attack(some), Certain()))
    assert [row for row, count in enumerate(found.forwards.tolist()) if count == 2] == [2, 9]
    assert int(found.forwards.sum()) == BATCH_UNIT + 2


def test_rows_that_fill_up_neither_pay_nor_are_judged() -> None:
    found = played(cell(attack(twice_back), Certain(), n=BATCH_UNIT + 5))
    assert found.forwards.tolist() == [3] * (BATCH_UNIT + 5) and len(found.item) == BATCH_UNIT + 5


@pytest.mark.parametrize(("images", "rows", "asked"), [(1, 64, 1000), (64, 1, 960)])
def test_the_budget_stops_a_run_that_would_never_end(images: int, rows: int, asked: int) -> None:
    def endless(problem: ExternalProblem) -> Tensor:
        question = problem.x.repeat(images, 1, 1, 1)
        while True:
            try:
                problem.model(question)
            except Exception:  # what libraries do
                continue

    budget, labels = Budget(queries=1000), ModelAccess(Certain(), access=Access.LABELS)
    n = 2 if rows == 1 else BATCH_UNIT
    game = cell(attack(endless, rows=rows), Certain(), n=n, budget=budget, model_access=labels)
    found = played(game)
    assert found.forwards.tolist() == [asked] * n
    assert torch.equal(found.image, game.x) and found.final_checks.sum() == 0


def test_a_budget_of_gradients_stops_in_the_backward_pass() -> None:
    result = against(lambda problem: climb(problem, 40), n=64, budget=Budget(gradients=7))
    assert result.gradients.max() == 7
    assert 0 < result.broken.sum() < 64


def test_a_stopped_library_hears_nothing_more() -> None:
    heard: list[int] = []

    def stubborn(problem: ExternalProblem) -> Tensor:
        for _ in range(20):
            try:
                problem.model(problem.x)
                heard.append(1)
            except BaseException:
                continue
        return problem.x

    found = played(cell(attack(stubborn), Certain(), budget=Budget(queries=3)))
    assert len(heard) == 3 and set(found.forwards.tolist()) == {3}


@pytest.mark.parametrize("access", [Access.LABELS, Access.SCORES, Access.GRADIENTS])
def test_what_the_board_hides_stays_hidden(access: Access) -> None:
    model, (x, _) = small_cnn(), digits(BATCH_UNIT)
    active = torch.ones(BATCH_UNIT, dtype=torch.bool)
    till = ExternalLedger(QueryLedger(BATCH_UNIT, FREE, x.device), active)
    guard = ExternalModel(
        ModelAccess(model), access, till, name="guest", shape=(1, 8, 8), on_answer=lambda *_: False
    )
    answer = guard(x.clone().requires_grad_())
    assert answer.requires_grad == (access is Access.GRADIENTS)
    assert torch.equal(answer.argmax(1), model(x).argmax(1))
    if access is Access.LABELS:
        assert set(answer.flatten().tolist()) == {0.0, 1.0} and (answer.sum(1) == 1).all()
    else:
        assert torch.equal(answer, model(x))
    assert list(guard.parameters()) == list(guard.buffers()) == list(guard.children()) == []


def test_an_attack_that_needs_labels_is_shown_labels() -> None:
    def look(problem: ExternalProblem) -> Tensor:
        assert set(problem.model(problem.x).flatten().tolist()) == {0.0, 1.0}
        return problem.x

    played(cell(attack(look, needs=Access.LABELS)))


@pytest.mark.parametrize("shown", [Access.LABELS, Access.GRADIENTS])
def test_an_attack_that_needs_nothing_is_shown_nothing(shown: Access) -> None:
    heard: list[Tensor] = []

    def look(problem: ExternalProblem) -> Tensor:
        heard.append(problem.model(problem.x))
        return problem.x

    game = cell(attack(look, needs=Access.NOTHING))
    door = ModelAccess(game.model_access.module, access=shown)
    sentence = "whole asked .* declares needs = Access.NOTHING; declare needs = Access.LABELS"
    with pytest.raises(PluginError, match=sentence):
        played(replace(game, model_access=door))
    assert heard == []


def test_a_board_that_reveals_nothing_answers_no_library() -> None:
    game = cell(attack(climb))
    door = ModelAccess(game.model_access.module, access=Access.NOTHING, attack_name="whole")
    with pytest.raises(PluginError, match="whole asked for labels, but this board reveals nothing"):
        played(replace(game, model_access=door))


def test_an_attack_that_needs_nothing_plays_as_long_as_it_does_not_ask() -> None:
    found = played(cell(attack(lambda problem: problem.x, needs=Access.NOTHING)))
    assert (found.forwards == 0).all() and (found.gradients == 0).all()


def rude(problem: ExternalProblem) -> Tensor:
    """All that a library might do to what is not its own."""
    model: Any = problem.model
    model.train()
    model.requires_grad_(True)
    uphill(problem, problem.x)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    torch.rand(3), np.random.rand(3), random.random()
    problem.x.zero_()
    problem.y.zero_()
    if problem.ball.radius < EPS:
        raise ValueError("out of ideas")
    return problem.x


@pytest.mark.parametrize(
    "ball", [LINF, Linf(Fraction(1, 255))], ids=["to the end", "until it fails"]
)
def test_model_and_random_state_are_left_alone(ball: PerturbationSet) -> None:
    model = copy.deepcopy(small_cnn())
    game = cell(attack(rude), model, ball=ball)
    state, world, x = ModelState.of(model), RandomState.snapshot(), game.x.clone()
    if ball is LINF:
        played(game)
    else:
        with pytest.raises(PluginError, match="whole failed in its own run: ValueError: out of id"):
            played(game)
    assert state.changed(model) == [] and world.changed() == []
    assert torch.equal(game.x, x) and not any(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


def test_the_library_is_let_go() -> None:
    class Library:
        pass

    kept: list[weakref.ref[Library]] = []

    def run(problem: ExternalProblem) -> Tensor:
        library = Library()
        library.model = problem.model  # type: ignore[attr-defined]
        library.answer = problem.model(problem.x.requires_grad_())  # type: ignore[attr-defined]
        kept.append(weakref.ref(library))
        return problem.x

    game = cell(attack(run))
    found = played(game)
    gc.collect()
    assert kept[0]() is None and not found.image.requires_grad


def test_what_a_library_prints_is_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(problem: ExternalProblem) -> Tensor:
        print("epoch 1 of 7")
        return problem.x

    played(cell(attack(chatty)))
    assert capsys.readouterr() == ("", "epoch 1 of 7\n")


def test_the_first_success_is_kept_with_its_price() -> None:
    """Broken at the third question, whatever is asked after it and whatever is returned."""

    def run(problem: ExternalProblem) -> Tensor:
        away = problem.ball.project(climb_by(problem, 12), problem.x)
        for question in (problem.x, problem.x, away, problem.x, problem.x):
            problem.model(question)
        return torch.full_like(problem.x, 7.0)

    def climb_by(problem: ExternalProblem, steps: int) -> Tensor:
        adv = problem.x
        for _ in range(steps):
            leaf = adv.clone().requires_grad_()
            loss = nn.functional.cross_entropy(small_cnn()(leaf), problem.y, reduction="sum")
            (slope,) = torch.autograd.grad(loss, leaf)
            adv = problem.ball.project(adv + 0.05 * slope.sign(), problem.x)
        return adv

    result = against(run, n=64)
    won = result.step >= 0
    assert 30 < won.sum() < 64
    assert set(result.forwards[won].tolist()) <= {0, 3} and result.broken[won].all()
    assert set(result.step[won].tolist()) <= {0, 2}
    assert set(result.forwards[~won].tolist()) == {5} and set(
        result.final_checks[~won].tolist()
    ) == {1}


def test_of_many_images_of_one_row_the_first_success_counts() -> None:
    x, y = digits(BATCH_UNIT)
    best = run_and_judge(attack(climb), small_cnn(), x, y, LINF)

    def run(problem: ExternalProblem) -> Tensor:
        near = torch.cdist(problem.x.flatten(1), x.flatten(1)).argmin()
        problem.model(torch.stack([x[near], x[near], best.image[near], best.image[near]]))
        return problem.x

    result = against(run, rows=1)
    assert torch.equal(result.broken, best.broken)
    assert set(result.forwards[best.broken & (best.forwards > 0)].tolist()) == {3}
    assert set(result.step[best.broken & (best.forwards > 0)].tolist()) == {2}


def test_a_run_ends_when_every_row_has_won() -> None:
    calls: list[int] = []

    def run(problem: ExternalProblem) -> Tensor:
        for _ in range(500):
            calls.append(1)
            problem.model(problem.ball.project(torch.rand_like(problem.x), problem.x))
        return problem.x

    by = attack(run)
    result = run_and_judge(by, small_cnn(), *digits(BATCH_UNIT), Linf(Fraction(1)))
    assert result.broken.all() and len(calls) < 50


def test_a_distance_board_keeps_the_nearest() -> None:
    def run(problem: ExternalProblem) -> Tensor:
        direction = uphill(problem, problem.x)
        length = direction.square().flatten(1).sum(1).sqrt().clamp_min(1e-12)
        for size in (4.0, 1.0, 2.0, 3.0):
            problem.model((problem.x + size * direction / length[:, None, None, None]).clamp(0, 1))
        return problem.x

    nearest = Goal("nearest")
    by = attack(run, minimises=True)
    result = run_and_judge(by, small_cnn(), *digits(64), L2(Fraction(8)), goal=nearest)
    lost = small_cnn()(digits(64)[0]).argmax(1) != digits(64)[1]
    sizes = result.distance[result.broken & ~lost]
    assert 10 < (sizes < 1.01).sum() < 64 and ((sizes > 1.01) & (sizes < 4.01)).any()


def test_a_transfer_attack_never_hears_the_target() -> None:
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    by = attack(climb, source="surrogate")
    result = run_and_judge(by, small_cnn(), *digits(BATCH_UNIT), LINF, source=surrogate)
    assert set(result.final_checks.tolist()) <= {0, 1} and set(result.step.tolist()) <= {-1, 0, 10}
    assert set(result.forwards[result.final_checks > 0].tolist()) == {10}


LIES: dict[str, Run] = {
    "unchanged": lambda problem: problem.x,
    "far away": lambda problem: (problem.x + 2 * problem.ball.radius).clamp(0, 1),
    "out of the box": lambda problem: problem.x - problem.ball.radius,
    "no numbers": lambda problem: problem.x * torch.nan,
    "beside": lambda problem: problem.x.zero_() + 0.5,
}


@pytest.mark.parametrize(
    ("lie", "verdict"),
    [
        ("unchanged", Verdict.ROBUST), ("far away", Verdict.OUT_OF_BALL),
        ("out of the box", Verdict.OUT_OF_BOX), ("no numbers", Verdict.NOT_FINITE),
        ("beside", Verdict.OUT_OF_BALL),
    ],
)  # fmt: skip
def test_a_library_that_lies_breaks_nothing(lie: str, verdict: Verdict) -> None:
    game = cell(attack(LIES[lie]), Certain())
    outcomes = referee(game).judge(played(game))
    assert set(outcomes.verdict.tolist()) == {int(verdict)}


def test_a_question_outside_the_ball_is_no_success() -> None:
    def run(problem: ExternalProblem) -> Tensor:
        problem.model((problem.x + 0.9).clamp(0, 1))
        problem.x.add_(0.9).clamp_(0, 1)  # moving the centre does not move the ball
        problem.model(problem.x)
        return problem.x

    found = played(cell(attack(run)))
    assert set(found.step.tolist()) <= {-1, 0} and (found.final_checks > 0).sum() >= 30


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (lambda p: p.x.double(), r"whole returned torch.float64 \[32, 1, 8, 8\]; torch.float32"),
        (lambda p: p.x[:3], r"whole returned torch.float32 \[3, 1, 8, 8\]"),
        (lambda p: None, "whole returned NoneType"),
        (lambda p: p.model(p.x.double()), "asked with torch.float64 images; float32 is expected"),
        (lambda p: p.model(p.x[0]), r"asked with images \[1, 8, 8\]; \[rows, 1, 8, 8\] is expec"),
        (lambda p: p.model(p.x[:5]), "asked about 5 images of 32 rows, and nobody can tell whose"),
        (lambda p: exit("I am done"), "whole failed in its own run: SystemExit: I am done"),
        (lambda p: p.model.for_rows(torch.tensor([1, 1])).__enter__(), "named a row twice"),
    ],
)  # fmt: skip
def test_every_mistake_gets_a_sentence(run: Run, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        played(cell(attack(run)))


def same(one: Candidates, two: Candidates) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


class Shaken(nn.Module):
    """The small network behind noise, which draws from the global generator."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = small_cnn()(images + 0.05 * torch.randn_like(images))
        return logits


@pytest.mark.parametrize("rows", [64, 1, 0, 32])
@pytest.mark.parametrize("shaken", [False, True], ids=["", "declared random"])
def test_seed_and_rows_decide_and_nothing_else(rows: int, shaken: bool) -> None:
    def game(seed: int = 0, slots: int = 64) -> CellSpec:
        by = attack(lambda problem: climb(problem, 3), rows=rows)
        if not shaken:
            return cell(by, n=n, seed=seed, slots=slots)
        return cell(by, Shaken(), n=n, seed=seed, slots=slots, noise=noise("play"))

    n = 80 if rows == 1 else 150
    first = played(game())
    assert same(first, played(game(slots=128), order=list(range(n))[::-1]))
    assert not torch.equal(first.image, played(game(seed=1)).image)
    head: Sequence[int] = first.item[:0].tolist() if rows == 0 else range(64)
    rest = played(game(), finished=head)
    assert rest.item.tolist() == list(range(len(head), n))
    assert same(Candidates(*(column[len(head) :] for column in first)), rest)


def test_imports_of_the_first_run_do_not_shift_its_draws() -> None:
    @dataclass
    class Prepared(Whole):
        draws: int = 0

        def prepare(self) -> None:
            torch.rand(self.draws)

    one: Any = Prepared(climb)
    two: Any = Prepared(climb, draws=7)
    assert same(played(cell(one)), played(cell(two)))


def test_clean_mistakes_are_not_played() -> None:
    seen: list[Tensor] = []

    def run(problem: ExternalProblem) -> Tensor:
        seen.append(problem.y)
        return problem.x

    lost = torch.arange(BATCH_UNIT) % 3 == 0
    game = cell(attack(run), Certain(), reached_on_clean=lost)
    found = played(game)
    assert torch.equal(seen[0][: int((~lost).sum())], game.y[~lost])
    assert torch.equal(found.final_checks == 0, lost) and (found.forwards == 0).all()


def test_a_stand_in_gives_the_slope_and_the_defense_the_answer() -> None:
    class Steps(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = small_cnn()((images * 4).round() / 4)
            return logits

    answers: list[Tensor] = []

    def run(problem: ExternalProblem) -> Tensor:
        answers.append(problem.model(problem.x.clone().requires_grad_()).detach())
        answers.append(uphill(problem, problem.x))
        return problem.x

    model = Steps()
    game = cell(attack(run), model, reached_on_clean=torch.zeros(BATCH_UNIT, dtype=torch.bool))
    played(replace(game, model_access=ModelAccess(model, bpda=small_cnn())))
    assert torch.equal(answers[0], model(game.x)) and answers[1].abs().sum() > 0
    played(game)
    assert answers[3].abs().sum() == 0


def test_a_run_of_its_own_is_never_given_a_faster_form() -> None:
    """A library may keep an answer, or walk its graph twice."""
    found = Registry.load()
    dataset = found.datasets["digits"].value
    builder = build_trained(found, "undefended", dataset)
    settings = RunSettings(torch.device("cpu"), numeric=Numeric.FAST)
    built = BuiltDefense(builder, datasets.first_examples(dataset, BATCH_UNIT), settings, 0)
    threat = found.find("threat", "digits-linf").value
    assert built.fast_model.applied
    assert built.cell_spec(threat, attack(climb), None).model_access.module is built.module
    stepwise = found.find("attack", "pgd").value
    stepwise_module = built.cell_spec(threat, stepwise, None).model_access.module
    assert stepwise_module is built.fast_model.module
