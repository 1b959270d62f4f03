"""Every law of the contract is turned red by a planted plugin, and every honest plugin is green."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import data
from bench.check import LAWS, Outcome, Result, run
from bench.check.run import SUBJECTS, tried
from bench.check.world import Ridge, fitted
from bench.kit import cross_entropy, straight_through
from bench.plugin import (
    Access,
    Claim,
    Defense,
    Evidence,
    Finding,
    Goal,
    Images,
    Linf,
    Problem,
    Randomness,
    Retire,
    Shelf,
    Split,
    State,
    ThreatModel,
)
from bench.records import BenchError
from bench.registry import Offer, Registry
from tests.planted import ATTACK, entry


@pytest.fixture(scope="module")
def world() -> Registry:
    return Registry.load(Path("no-such-folder"))


def found(world: Registry, kind: str, value: Any, check: str) -> Result:
    """One law on one planted plugin."""
    table = {**getattr(world, f"{kind}s"), value.name: Offer(value, "planted", "planted", "0" * 64)}
    changed: dict[str, Any] = {f"{kind}s": table}
    registry = replace(world, **changed)
    (law,) = (law for law in LAWS[kind] if law.name == check)
    return tried(kind, value.name, law, SUBJECTS[kind](registry, value))


@pytest.fixture(scope="module")
def classifier(world: Registry) -> Ridge:
    """An honest classifier of digits, without any training."""
    digits = data.read(world.datasets["digits"].value)
    assert digits.train is not None
    return fitted(digits.train, 10, torch.zeros(1), torch.zeros(1)).model  # type: ignore[return-value]


class Wrapped(nn.Module):
    """A classifier and something that went wrong around it."""

    def __init__(self, classifier: nn.Module, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.inner = copy.deepcopy(classifier)
        self.around = forward
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: Tensor) -> Any:
        return self.around(self, images)


def defense(build: Callable[[Shelf], Any], **record: Any) -> Defense:
    return Defense("planted", build, **record)


def counting(self: Any, images: Tensor) -> Any:
    self.calls += 1
    return self.inner(images) + 1e-5 * self.calls


def waking(self: Any, images: Tensor) -> Any:
    self.calls += 1
    return self.inner(images) * (-1 if self.calls > 6 else 1)


def wary(self: Any, images: Tensor) -> Any:
    self.calls += images.requires_grad
    return self.inner(images) * (-1 if self.calls and not images.requires_grad else 1)


def training(self: Any, images: Tensor) -> Any:
    self.train()
    return self.inner(images)


def recording(self: Any, images: Tensor) -> Any:
    self.seen += 1
    return self.inner(images)


def overwriting(self: Any, images: Tensor) -> Any:
    answer = self.inner(images.clone())
    images.mul_(0.5)
    return answer


def drawing(self: Any, images: Tensor) -> Any:
    np.random.rand()
    return self.inner(images)


def private(self: Any, images: Tensor) -> Any:
    self.calls += 1
    generator = torch.Generator().manual_seed(self.calls)
    return self.inner(images) + torch.randn(10, generator=generator)


def position(self: Any, images: Tensor) -> Any:
    return self.inner(images) + torch.arange(len(images))[:, None].float().sin()


def alone(self: Any, images: Tensor) -> Any:
    return self.inner(images) * (-1 if len(images) == 1 else 1)


def standardised(self: Any, images: Tensor) -> Any:
    flat = images.flatten(1)
    return self.inner(images / flat.std(1)[:, None, None, None])


def batch_mean(self: Any, images: Tensor) -> Any:
    return self.inner(images - images.mean(0) + 0.5)


def rounded(self: Any, images: Tensor) -> Any:
    return self.inner(straight_through(lambda x: (7 * x).round() / 7)(images))


FORWARDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "logits-have-one-column-a-class": lambda self, x: self.inner(x)[:, :9],
    "logits-are-float32": lambda self, x: self.inner(x).double(),
    "logits-are-finite": lambda self, x: self.inner(x) / 0,
    "black-and-white-are-images": standardised,
    "asking-twice-answers-twice-the-same": counting,
    "companions-do-not-matter": batch_mean,
    "order-does-not-matter": position,
    "one-image-is-a-batch": alone,
    "calls-leave-no-trace": waking,
    "gradients-leave-no-trace": wary,
    "gradients-are-of-the-same-answer": lambda self, x: self.inner(x) + x.requires_grad,
    "eval-mode-is-kept": training,
    "weights-are-left-alone": recording,
    "images-are-left-alone": overwriting,
    "global-random-state-is-left-alone": drawing,
    "randomness-is-declared": lambda self, x: self.inner(x) + torch.randn(10),
    "a-gradient-exists": lambda self, x: self.inner(x.detach()),
    "gradient-is-the-slope": rounded,
    "better-than-chance": lambda self, x: -self.inner(x),
}


@pytest.mark.parametrize("check", FORWARDS)
def test_a_forward_that_breaks_a_law_turns_it_red(
    world: Registry, classifier: nn.Module, check: str
) -> None:
    bad = defense(lambda shelf: Wrapped(classifier, FORWARDS[check]))
    assert found(world, "defense", bad, check).outcome is Outcome.FAIL
    good = defense(lambda shelf: Wrapped(classifier, lambda self, x: self.inner(x)))
    result = found(world, "defense", good, check)
    assert result.outcome is Outcome.PASS, result.sentence


class Unsaved(Ridge):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: object) -> None:
        return


class Looked(nn.Module):
    """Knows the test images to the bit."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.labels = {image.numpy().tobytes(): y for image, y in zip(images, labels, strict=True)}

    def forward(self, images: Tensor) -> Tensor:
        found = [self.labels.get(image.numpy().tobytes(), 0) for image in images.detach()]
        return nn.functional.one_hot(torch.tensor(found), 10).float()


class Nearest(nn.Module):
    """Knows the test images and their neighbourhood, and nothing else."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.images, self.labels = images.flatten(1), labels

    def forward(self, images: Tensor) -> Tensor:
        near = torch.cdist(images.flatten(1), self.images).min(1)
        known = near.values < 0.5
        label = torch.where(known, self.labels[near.indices], 0)
        return nn.functional.one_hot(label, 10).float()


BUILT = 0


def differing(classifier: nn.Module) -> nn.Module:
    global BUILT
    BUILT += 1
    shift = float(BUILT)
    return Wrapped(classifier, lambda self, x: self.inner(x) + shift)


def test_build_must_give_a_module(world: Registry) -> None:
    bad = defense(lambda shelf: "a module")
    result = found(world, "defense", bad, "builds")
    assert result.outcome is Outcome.FAIL
    assert "torch.nn.Module was expected" in result.sentence


def test_two_builds_that_differ_are_two_defenses(world: Registry, classifier: nn.Module) -> None:
    bad = defense(lambda shelf: differing(classifier))
    assert found(world, "defense", bad, "two-builds-are-one").outcome is Outcome.FAIL


def test_state_that_no_file_holds_is_noticed(world: Registry, classifier: Ridge) -> None:
    bad = defense(lambda shelf: Unsaved(classifier.inner, classifier.outer, classifier.bias))
    assert found(world, "defense", bad, "saved-is-loaded").outcome is Outcome.FAIL


@pytest.mark.parametrize(("fake", "check"), [(Looked, "not-looked-up"), (Nearest, "not-memorised")])
def test_memory_is_no_defense(world: Registry, fake: Any, check: str) -> None:
    examples = data.examples(world.datasets["digits"].value, 500)
    x, y = examples.tensor(), torch.from_numpy(examples.labels.copy())
    assert found(world, "defense", defense(lambda shelf: fake(x, y)), check).outcome is Outcome.FAIL


def test_a_nearest_neighbour_passes_the_look_up_and_fails_the_canary(world: Registry) -> None:
    examples = data.examples(world.datasets["digits"].value, 500)
    x, y = examples.tensor(), torch.from_numpy(examples.labels.copy())
    near = defense(lambda shelf: Nearest(x, y))
    assert found(world, "defense", near, "not-looked-up").outcome is Outcome.PASS


@pytest.mark.parametrize(("rejected", "outcome"), [(40, Outcome.PASS), (41, Outcome.FAIL)])
def test_a_threshold_that_rejects_more_than_it_declares_is_refused(
    world: Registry, classifier: Ridge, rejected: int, outcome: Outcome
) -> None:
    """Of 256 clean images at most 2 * 5 % and three standard errors more, that is 40."""
    grey = data.examples(world.datasets["digits"].value, 256).tensor().flatten(1).mean(1)
    level = grey.sort(descending=True).values[rejected - 1 : rejected + 1].mean()

    def scored(wrapped: Wrapped, images: Tensor) -> Tensor:
        score = images.flatten(1).mean(1, keepdim=True) - level
        return torch.cat([wrapped.inner(images), score], 1)

    bad = replace(defense(lambda shelf: Wrapped(classifier, scored)), rejects=0.05)
    assert found(world, "defense", bad, "clean-images-are-accepted").outcome is outcome


RECORDS: list[tuple[str, dict[str, Any], str]] = [
    ("names-are-known", {"claims": (Claim("digits-linff", 0.5),)}, "Did you mean 'digits-linf'?"),
    ("names-are-known", {"claims": (Claim("mnist-linf", 0.5),)}, "`datasets` leaves out"),
    ("names-are-known", {"twin": "undefnded"}, "Did you mean 'undefended'?"),
    ("names-are-known", {"datasets": ("digitz",)}, "Did you mean 'digits'?"),
    ("claims-are-shares", {"claims": (Claim("digits-linf", 87.0),)}, "a share is 0 to 1"),
    ("claims-are-shares", {"claims": (Claim("a", 0.5), Claim("a", 0.6))}, "claimed twice"),
    ("randomness-is-declared", {"randomness": Randomness()}, "do not vary with the seed"),
]


@pytest.mark.parametrize(("check", "record", "sentence"), RECORDS)
def test_a_record_that_breaks_a_law_turns_it_red(
    world: Registry, classifier: nn.Module, check: str, record: dict[str, Any], sentence: str
) -> None:
    result = found(world, "defense", defense(lambda shelf: classifier, **record), check)
    assert result.outcome is Outcome.FAIL
    assert sentence in result.sentence


def test_a_generator_of_its_own_is_no_declared_randomness(
    world: Registry, classifier: nn.Module
) -> None:
    bad = defense(lambda shelf: Wrapped(classifier, private), randomness=Randomness())
    result = found(world, "defense", bad, "randomness-is-declared")
    assert "one seed of torch gave two answers" in result.sentence


@pytest.mark.parametrize(
    "forward", [lambda self, x: self.inner(x.detach()), lambda self, x: self.inner(x)[:, :3]]
)
def test_a_useless_stand_in_is_noticed(
    world: Registry, classifier: nn.Module, forward: Callable[[Any, Tensor], Any]
) -> None:
    bad = defense(lambda shelf: classifier, stand_in=lambda shelf: Wrapped(classifier, forward))
    assert found(world, "defense", bad, "stand-in-answers-alike").outcome is Outcome.FAIL
    good = defense(lambda shelf: classifier, stand_in=lambda shelf: copy.deepcopy(classifier))
    assert found(world, "defense", good, "stand-in-answers-alike").outcome is Outcome.PASS


def test_a_stand_in_is_an_answer_to_a_missing_gradient(
    world: Registry, classifier: nn.Module
) -> None:
    hidden = defense(
        lambda shelf: Wrapped(classifier, FORWARDS["a-gradient-exists"]),
        stand_in=lambda shelf: copy.deepcopy(classifier),
    )
    for check in ("a-gradient-exists", "gradient-is-the-slope"):
        assert found(world, "defense", hidden, check).outcome is Outcome.NOT_APPLICABLE


def test_a_control_says_why_its_gradient_hides(world: Registry, classifier: nn.Module) -> None:
    control = defense(
        lambda shelf: Wrapped(classifier, FORWARDS["a-gradient-exists"]),
        detail={"exempt": {"a-gradient-exists": "a control"}},
    )
    result = found(world, "defense", control, "a-gradient-exists")
    assert result.outcome is Outcome.NOT_APPLICABLE
    assert "a control" in result.sentence
    assert found(world, "defense", control, "better-than-chance").outcome is Outcome.PASS


def test_declared_randomness_breaks_no_law(world: Registry, classifier: nn.Module) -> None:
    noisy = defense(
        lambda shelf: Wrapped(
            classifier, lambda self, x: self.inner(x + 0.05 * torch.randn_like(x))
        ),
        randomness=Randomness(),
    )
    outcomes = {law.name: found(world, "defense", noisy, law.name) for law in LAWS["defense"]}
    assert [r for r in outcomes.values() if r.outcome is Outcome.FAIL] == []


class Pair(NamedTuple):
    adv: Tensor
    other: Any


class Climb:
    """An honest attack of eight steps; what goes wrong is put in its place."""

    name = "planted"
    needs = Access.GRADIENTS
    steps = 8

    def start(self, problem: Problem) -> State:
        return problem.ball.sample(problem.x, problem)

    def step(self, problem: Problem, state: State) -> State:
        uphill = self.uphill(problem, state)
        return self.inside(problem, state + 0.25 * problem.ball.radius * uphill)

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.steepest(problem.gradient(adv, cross_entropy).gradient, adv)

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return problem.ball.project(adv, problem.x)


def gradient(problem: Problem, adv: Tensor) -> Tensor:
    return problem.gradient(adv, cross_entropy).gradient


class Unprojected(Climb):
    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return adv


class Cube(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        return Linf(problem.ball.eps).project(adv, problem.x)

    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return gradient(problem, adv).sign()


class Targetless(Climb):
    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        lost = (problem.target >= 0)[:, None, None, None]
        return torch.where(lost, adv + 9, super().inside(problem, adv))


class Relative(Climb):
    def start(self, problem: Problem) -> State:
        contrast = problem.x.flatten(1).std(1)[:, None, None, None]
        return problem.ball.project(problem.x + 0.01 * problem.x / contrast, problem.x)


class Narrow(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return super().uphill(problem, adv).reshape(-1, 1, 8, 8)


class Divided(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        found = gradient(problem, adv)
        length = found.flatten(1).square().sum(1).sqrt()
        return found / length[:, None, None, None]


class Scaled(Climb):
    def inside(self, problem: Problem, adv: Tensor) -> Tensor:
        share = (adv - problem.x) / problem.ball.radius
        return problem.ball.project(problem.x + problem.ball.radius * share, problem.x)


class Global(Climb):
    def start(self, problem: Problem) -> State:
        return problem.ball.project(problem.x + 0.1 * torch.randn_like(problem.x), problem.x)


class Batch(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        found = gradient(problem, adv)
        return found / (found.abs().mean() + 1e-9)


class Clock(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        return super().uphill(problem, adv) / (1 + problem.t.max())


class Scribble(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def step(self, problem: Problem, state: State) -> State:
        problem.x.mul_(0.99)
        return super().step(problem, state)


class InPlace(Climb):
    def step(self, problem: Problem, state: State) -> State:
        state.add_(0.01)
        return super().step(problem, state)


class Vandal(Climb):
    def step(self, problem: Problem, state: State) -> State:
        problem.asked.module.bias.zero_()  # type: ignore[attr-defined]
        return super().step(problem, state)


class Seeding(Climb):
    def step(self, problem: Problem, state: State) -> State:
        torch.manual_seed(0)
        return super().step(problem, state)


class Remembering(Climb):
    def __init__(self) -> None:
        self.count = 0

    def step(self, problem: Problem, state: State) -> State:
        self.count += 1
        return super().step(problem, state)


class Greedy(Climb):
    needs = Access.LABELS


class Peeking(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        even = torch.arange(len(adv)) % 2 == 0
        found = problem.gradient(adv, cross_entropy, even).gradient
        return problem.ball.steepest(found, adv)


class Masked(Climb):
    def uphill(self, problem: Problem, adv: Tensor) -> Tensor:
        even = torch.arange(len(adv)) % 2 == 0
        found = problem.gradient(adv, cross_entropy, even).gradient
        return problem.ball.steepest(found * even[:, None, None, None], adv)


class Idle(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.clone()

    def step(self, problem: Problem, state: State) -> State:
        return problem.x.clone()


class Asking(Climb):
    def start(self, problem: Problem) -> State:
        return problem.ball.project(problem.x + gradient(problem, problem.x), problem.x)


class Flattening(Climb):
    def start(self, problem: Problem) -> State:
        return problem.x.flatten(1)


class Doubling(Climb):
    def step(self, problem: Problem, state: State) -> State:
        return super().step(problem, state.float()).double()


class Counting(Climb):
    def start(self, problem: Problem) -> State:
        return Pair(problem.x.clone(), torch.tensor(0))

    def step(self, problem: Problem, state: State) -> State:
        return Pair(super().step(problem, state.adv), state.other + 1)


class Untyped(Climb):
    retires = "first success"


class Wishful(Climb):
    goals = ("all",)


class Endless(Climb):
    retires = Retire.CONVERGENCE


class Bored(Climb):
    retires = Retire.CONVERGENCE

    def done(self, state: State) -> Tensor:
        return torch.tensor(True)


class Nameless(Climb):
    def __init__(self) -> None:
        self.loss = lambda logits, label: logits[:, 0]


class Twoless(Climb):
    def runs(self, classes: int) -> int:
        return classes - 2


ATTACKS: list[tuple[str, type[Climb]]] = [
    ("declarations-are-typed", Untyped),
    ("declarations-are-typed", Wishful),
    ("declarations-are-typed", Endless),
    ("parameters-have-a-digest", Nameless),
    ("runs-are-counted-from-one", Twoless),
    ("start-asks-nothing", Asking),
    ("start-keeps-the-shape", Flattening),
    ("steps-keep-the-shape", Doubling),
    ("state-has-the-rows-first", Counting),
    ("iterates-stay-inside", Unprojected),
    ("every-claimed-set-works", Cube),
    ("every-claimed-goal-works", Targetless),
    ("saturated-images-are-images", Relative),
    ("other-shapes-and-class-counts-work", Narrow),
    ("a-zero-gradient-is-no-crash", Divided),
    ("radius-zero-is-the-clean-image", Scaled),
    ("the-same-again", Global),
    ("rows-are-independent", Batch),
    ("late-rows-are-as-good", Clock),
    ("inputs-are-left-alone", Scribble),
    ("states-are-left-alone", InPlace),
    ("model-is-left-alone", Vandal),
    ("global-random-state-is-left-alone", Seeding),
    ("attack-is-left-alone", Remembering),
    ("it-asks-only-what-it-declares", Greedy),
    ("masked-rows-are-not-read", Peeking),
    ("done-answers-for-each-row", Bored),
    ("it-breaks-something", Idle),
]


@pytest.mark.parametrize(("check", "bad"), ATTACKS)
def test_an_attack_that_breaks_a_law_turns_it_red(
    world: Registry, check: str, bad: type[Climb]
) -> None:
    result = found(world, "attack", bad(), check)
    assert result.outcome is Outcome.FAIL, result.sentence
    assert result.sentence.endswith(".")


@pytest.mark.parametrize("check", [law.name for law in LAWS["attack"]])
def test_an_honest_attack_keeps_every_law(world: Registry, check: str) -> None:
    assert found(world, "attack", Climb(), check).outcome is not Outcome.FAIL


def test_answers_to_the_rows_that_were_asked_for_may_be_used(world: Registry) -> None:
    assert found(world, "attack", Masked(), "masked-rows-are-not-read").outcome is Outcome.PASS


@dataclass(frozen=True)
class Loose(Linf):
    """A cube whose projection forgets the box."""

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        return torch.clamp(adv, x - self.radius, x + self.radius)


@dataclass(frozen=True)
class Drifting(Linf):
    """A cube whose projection pulls every point halfway back."""

    def project(self, adv: Tensor, x: Tensor) -> Tensor:
        return x + (super().project(adv, x) - x) / 2


@dataclass(frozen=True)
class Shifted(Linf):
    """A cube whose distance does not begin at 0."""

    def distance(self, adv: Tensor, x: Tensor) -> Tensor:
        return super().distance(adv, x) + 0.01


@dataclass(frozen=True)
class Far(Linf):
    """A cube whose samples are twice too far."""

    def sample(self, x: Tensor, draws: Any) -> Tensor:
        return Linf(2 * self.eps).sample(x, draws)


EPS = Fraction(1, 5)
THREATS: list[tuple[str, dict[str, Any]]] = [
    ("radius-is-an-exact-fraction", {"ball": SimpleNamespace(eps=0.031)}),
    ("radius-is-an-exact-fraction", {"ball": Linf(Fraction(0))}),
    ("data-set-is-known", {"dataset": "digitz"}),
    ("data-set-is-known", {"examples": 501}),
    ("required-attacks-are-known", {"required": ("pdg",)}),
    ("required-attacks-may-play", {"required": ("pgd",), "access": Access.LABELS}),
    ("required-attacks-may-play", {"required": ("deepfool",), "goal": Goal("targeted", "next")}),
    ("id-is-a-digest-of-the-rules", {"ball": SimpleNamespace(eps=EPS, name="x", radius=np.inf)}),
    ("projection-is-feasible-and-idempotent", {"ball": Loose(EPS)}),
    ("projection-is-feasible-and-idempotent", {"ball": Drifting(EPS)}),
    ("clean-image-is-inside", {"ball": Shifted(EPS)}),
    ("samples-are-inside", {"ball": Far(EPS)}),
]


@pytest.mark.parametrize(("check", "record"), THREATS)
def test_a_threat_model_that_breaks_a_law_turns_it_red(
    world: Registry, check: str, record: dict[str, Any]
) -> None:
    good = ThreatModel("planted", "digits", Linf(EPS))
    assert found(world, "threat", good, check).outcome is Outcome.PASS
    bad = replace(good, **record)
    assert found(world, "threat", bad, check).outcome is Outcome.FAIL


READS = 0


def shuffled(images: Images) -> Images:
    global READS
    READS += 1
    return replace(images, test=Split(np.roll(images.test.images, READS, 0), images.test.labels))


def one_class_less(images: Images) -> Images:
    kept = images.test.labels != 3
    test = Split(images.test.images[kept], images.test.labels[kept])
    return Images(images.train, test, images.index[kept])


def sorted_by_class(images: Images) -> Images:
    order = np.argsort(images.test.labels, kind="stable")
    test = Split(images.test.images[order], images.test.labels[order])
    return Images(images.train, test, images.index[order])


def darkened(images: Images) -> Images:
    return replace(images, test=Split(images.test.images // 16, images.test.labels))


def taught_to_the_test(images: Images) -> Images:
    return replace(images, train=images.test)


def too_small(images: Images) -> Images:
    return replace(images, test=Split(images.test.images[:, :, :7], images.test.labels))


PICTURES: list[tuple[str, Callable[[Images], Images] | None, dict[str, Any]]] = [
    ("digest-is-declared", None, {"digest": ""}),
    ("digest-is-that-of-the-images", None, {"digest": "0" * 64}),
    ("it-is-what-its-record-says", too_small, {}),
    ("reading-again-gives-the-same", shuffled, {}),
    ("every-class-is-there", one_class_less, {"test_size": 450}),
    ("first-examples-are-balanced", sorted_by_class, {}),
    ("pixels-use-their-range", darkened, {}),
    ("training-and-test-are-apart", taught_to_the_test, {}),
]


@pytest.mark.parametrize(("check", "spoil", "record"), PICTURES)
def test_a_data_set_that_breaks_a_law_turns_it_red(
    world: Registry, check: str, spoil: Callable[[Images], Images] | None, record: dict[str, Any]
) -> None:
    good = world.datasets["digits"].value
    if spoil is not None:
        record = {"digest": "", **record, "load": lambda folder: spoil(good.load(folder))}
    bad = replace(good, name="planted", **record)
    assert found(world, "dataset", bad, check).outcome is Outcome.FAIL
    assert found(world, "dataset", good, check).outcome is Outcome.PASS


def certifier(world: Registry, **spoiled: Any) -> Any:
    """The exact linear certificate, spoiled."""
    good = world.certifiers["linear-exact"].value
    return SimpleNamespace(
        **{"name": "planted", "exact": True, "refuses": good.refuses, "certify": good.certify}
        | spoiled
    )


CERTIFIERS: list[tuple[str, dict[str, Any]]] = [
    ("refusal-is-a-sentence", {"refuses": lambda module, ball: False}),
    ("certificate-has-one-bit-a-row", {"certify": lambda m, x, y, ball: x[:, 0, 0, 0]}),
    ("no-certificate-is-false", {"certify": lambda m, x, y, ball: y >= 0}),
    (
        "no-certificate-is-false",
        {"certify": lambda m, x, y, ball: (x[:, 0, 0, 0] - 0.5).abs() > ball.radius},
    ),
    ("smaller-balls-certify-more", {"certify": lambda m, x, y, ball: y < 10 * ball.radius}),
    ("model-is-left-alone", {"certify": lambda m, x, y, ball: m.train() and y > 9}),
]


@pytest.mark.parametrize(("check", "spoiled"), CERTIFIERS)
def test_a_certifier_that_breaks_a_law_turns_it_red(
    world: Registry, check: str, spoiled: dict[str, Any]
) -> None:
    assert found(world, "certifier", certifier(world, **spoiled), check).outcome is Outcome.FAIL
    assert found(world, "certifier", certifier(world), check).outcome is Outcome.PASS


LOOKS = 0


def moody(*args: Any) -> Evidence:
    global LOOKS
    LOOKS += 1
    return Evidence(Finding.CLEAR, f"look {LOOKS}.")


def seeding(*args: Any) -> Evidence:
    torch.manual_seed(0)
    return Evidence(Finding.CLEAR, "all is well.")


DIAGNOSTICS: list[tuple[str, Callable[..., Any]]] = [
    ("evidence-is-a-finding-and-a-sentence", lambda *args: True),
    ("evidence-is-a-finding-and-a-sentence", lambda *args: Evidence(Finding.CLEAR, " ")),
    ("honest-models-raise-no-flag", lambda *args: Evidence(Finding.RAISED, "guilty.")),
    ("looking-is-repeatable", moody),
    ("model-is-left-alone", seeding),
]


@pytest.mark.parametrize(("check", "examine"), DIAGNOSTICS)
def test_a_diagnostic_that_breaks_a_law_turns_it_red(
    world: Registry, check: str, examine: Callable[..., Any]
) -> None:
    bad = SimpleNamespace(name="planted", examine=examine)
    assert found(world, "diagnostic", bad, check).outcome is Outcome.FAIL


def test_every_law_is_turned_red_somewhere_in_this_file() -> None:
    source = Path(__file__).read_text()
    unproven = [law.name for laws in LAWS.values() for law in laws if f'"{law.name}"' not in source]
    assert unproven == ["builds"] or unproven == []


def test_the_contract_has_many_laws_and_each_has_its_text() -> None:
    laws = [law for kind in LAWS.values() for law in kind]
    assert len(laws) >= 60
    assert all(law.text.endswith(".") and len(law.text) < 100 for law in laws)
    for kind in LAWS.values():
        assert len({law.name for law in kind}) == len(kind)


def test_a_plugin_that_raises_breaks_the_law_and_not_the_program(world: Registry) -> None:
    bad = defense(lambda shelf: 1 / 0)
    result = found(world, "defense", bad, "builds")
    assert (result.outcome, result.sentence) == (
        Outcome.FAIL,
        "ZeroDivisionError: division by zero.",
    )


def test_a_defense_without_weights_is_told_apart_from_a_broken_one(
    world: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    undefended = world.defenses["undefended"].value
    result = found(world, "defense", undefended, "builds")
    assert result.outcome is Outcome.NOT_APPLICABLE
    assert "bench train undefended" in result.sentence


def test_weights_that_are_missing_can_be_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "taught.py"
    path.write_text(TAUGHT)
    registry = Registry.load(tmp_path / "none")
    builds = {r.check: r for r in run(path, registry)}["builds"]
    assert builds.outcome is Outcome.NOT_APPLICABLE
    results = run(path, Registry.load(tmp_path / "none"), train=True)
    assert {r.check: r for r in results}["builds"].outcome is Outcome.PASS
    assert [r for r in results if r.outcome is Outcome.FAIL] == []


TAUGHT = """
from torch import nn
from bench.kit import cross_entropy
from bench.plugin import *

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def loss(lesson):
    return cross_entropy(lesson.model(lesson.x), lesson.y)

@hookimpl
def bench_defenses():
    build = lambda shelf: shelf.trained(net(shelf.shape, shelf.classes))
    yield Defense("taught", build, recipe=Recipe(net, loss, epochs=3, rate=1e-2))
"""


def test_a_name_is_checked_as_a_path_is(world: Registry, tmp_path: Path) -> None:
    place = entry(tmp_path, "nudge", ATTACK.format(name="nudge"))
    by_path = run(place, Registry.load(tmp_path))
    assert [r.check for r in by_path][:2] == ["card-is-in-order", "passes-the-door"]
    by_name = run("nudge", Registry.load(tmp_path, allow_unsandboxed=True))
    assert by_name == by_path[2:]
    assert {r.outcome for r in by_name} > {Outcome.PASS}


def test_an_unknown_name_is_answered_with_the_near_one(world: Registry) -> None:
    with pytest.raises(BenchError, match="Did you mean 'fgsm'"):
        run("fgsmm", world)


def test_a_plugin_file_is_checked_alone(tmp_path: Path) -> None:
    path = tmp_path / "nudge.py"
    path.write_text("from bench.plugin import *\n" + ATTACK.format(name="nudge"))
    results = run(path, Registry.load(tmp_path / "none"))
    assert results[0].check == "passes-the-door"
    assert {r.name for r in results[1:]} == {"nudge"}


def test_a_plugin_that_is_refused_at_the_door_says_why(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text("def bench_attacks():\n    return ()\n")
    (result,) = run(path, Registry.load(tmp_path / "none"))
    assert result.outcome is Outcome.FAIL
    assert "without @hookimpl" in result.sentence


def test_a_bad_card_ends_the_check_before_any_code_runs(tmp_path: Path) -> None:
    place = entry(tmp_path, "hasty", f"open({str(tmp_path / 'ran')!r}, 'w')", card="licens = 'x'")
    (result,) = run(place, Registry.load(tmp_path / "none"))
    assert result.outcome is Outcome.FAIL
    assert "Did you mean 'licence'?" in result.sentence
    assert not (tmp_path / "ran").exists()


def test_results_are_plain_records() -> None:
    result = Result("attack", "pgd", "the-same-again", Outcome.PASS, "It is.")
    assert dataclasses.asdict(result)["outcome"] == "pass"
