"""Targets of the engine: overhead, model calls, independence of batches, a whole matrix."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.core.cells import Numeric
from bench.engine.model_access import freeze
from bench.plugin import Fraction, Linf
from tests.benchmarks import cases, peer_attacks, unit_cost
from tests.benchmarks.cases import Case, load_case
from tests.benchmarks.comparison import (
    WARM_UP_EXAMPLES,
    CountPair,
    Measure,
    Pair,
    Scale,
    Target,
    TargetResult,
    strength_fault,
    summarised,
)
from tests.benchmarks.our_runs import Runner, RunOptions, cascade, ours
from tests.benchmarks.peer_attacks import peer
from tests.benchmarks.run_result import RunResult
from tests.fixtures.known_models import small_cnn
from tests.tools.overhead import library_pairs, ratio

OVERHEAD_SLOTS = 256
MIN_TIMED_STEPS = 10  # attacks with fewer steps are run several times
NARROW_BALL = Linf(Fraction(1, 25500))
"""A hundredth of a grey level: no example breaks, so every row makes every step."""


def single_result(
    target: Target, figure: float, unit: str, runs: Sequence[RunResult], note: str = ""
) -> TargetResult:
    """A result without a peer: the figure itself is compared with the threshold."""
    return TargetResult(
        target.key, target.what, unit, figure, None, figure, target.threshold.value,
        target.threshold.at_most,
        target.threshold.holds(figure), robust_ours=runs[0].robust if runs else None,
        forwards=CountPair(runs[0].forwards if runs else 0),
        gradients=CountPair(runs[0].gradients if runs else 0),
        examples=len(runs[0].broken) if runs else target.examples, pairs=len(runs), note=note,
    )  # fmt: skip


def step_overhead(name: str, attack: str, **changes: int) -> Measure:
    """Time of an attack over the model time of its steps and final check, no row leaving early."""

    def measure(target: Target, scale: Scale) -> TargetResult:
        case = target.case(name, scale)._replace(ball=NARROW_BALL)
        runner = ours(attack, RunOptions(slots=OVERHEAD_SLOTS), **changes)
        runs = [runner(case.first(WARM_UP_EXAMPLES), 0)]
        steps = round(runs[0].gradients / runs[0].robust)
        figures = []
        for seed in range(target.times(scale)):
            before = model_seconds(case, steps)
            seconds = 0.0
            for _ in range(repeats := max(1, MIN_TIMED_STEPS // steps)):
                runs.append(runner(case, seed))
                seconds += runs[-1].seconds / repeats
            figures.append(2 * seconds / (before + model_seconds(case, steps)))
        note = f"over pairs {min(figures):.2f} to {max(figures):.2f}"
        row = single_result(target, statistics.median(figures), "of the model time", runs[1:], note)
        return replace(row, pairs=len(figures))

    return measure


def model_seconds(case: Case, steps: int) -> float:
    """Seconds of `steps` forwards with gradient and one forward, of the whole batch."""
    repeats = max(1, MIN_TIMED_STEPS // steps)
    since = unit_cost.now(case.x.device)
    for _ in range(repeats):
        for _ in range(steps):
            unit_cost.forward_and_gradient(case.model, case.x, case.y)
        with torch.no_grad():
            case.model(case.x)
    return (unit_cost.now(case.x.device) - since) / repeats


def gradients(name: str) -> Measure:
    """Gradient evaluations per example of PGD-40."""

    def measure(target: Target, scale: Scale) -> TargetResult:
        run = ours("pgd", RunOptions(Numeric.FAST))(target.case(name, scale), 0)
        return single_result(target, run.gradients, "gradients per example", [run])

    return measure


def all_images(name: str, count: int) -> Case:
    """The case with the last `count` images of the data set, training images included."""
    case = load_case(name)
    x, y = cases.images(cases.RECIPES[name].network)
    return cases.frozen_case(name, case.model, x[-count:], y[-count:], case.ball)


def fewer_calls(target: Target, scale: Scale) -> TargetResult:
    """Model calls of batches that are not refilled, over those of this project."""
    case = all_images("digits-std", min(target.examples, scale.examples or target.examples))
    run = ours("pgd", RunOptions(slots=96))(case, 0)
    peer_calls, spent = compaction_calls(case)
    row = single_result(target, peer_calls / run.calls, "times fewer", [run])
    return replace(row, ours=float(run.calls), peer=float(peer_calls), unit="calls",
                   gradients=CountPair(run.gradients, spent))  # fmt: skip


def compaction_calls(case: Case, batch: int = 96) -> tuple[int, float]:
    """Model calls and gradients per example of PGD-40 where batches drop broken examples."""
    made, spent = 0, 0
    for part in torch.split(case.correct.nonzero()[:, 0], batch):
        smaller = case._replace(
            x=case.x[part], y=case.y[part], clean_logits=case.clean_logits[part]
        )
        steps = torch.tensor(batch_sizes(smaller))
        made, spent = made + len(steps), spent + int(steps.sum())
    return made, spent / len(case.x)


def batch_sizes(case: Case) -> list[int]:
    """The number of rows of each call: up to 40 with a gradient and one final forward."""
    x, y, eps = case.x, case.y, float(case.ball.radius)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    adv = (x + eps * (2 * noise - 1)).clamp(0, 1)
    sizes = []
    for _ in range(41):
        if not len(adv):
            break
        sizes.append(len(adv))
        leaf = adv.detach().requires_grad_()
        logits = case.model(leaf)
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, leaf)
        left = logits.argmax(1) == y
        adv, x, y, slope = adv[left], x[left], y[left], slope[left]
        adv = adv + eps / 10 * slope.sign()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
    return sizes


def batch_dependence(target: Target, scale: Scale) -> TargetResult:
    """Count examples whose verdict or image depends on batch size, order or refill."""
    case = target.case("digits-std", scale)
    count = len(case.x)
    settings = [
        RunOptions(slots=64), RunOptions(slots=96), RunOptions(slots=256),
        RunOptions(slots=64, order=list(reversed(range(count)))),
        RunOptions(slots=64, order=torch.randperm(count, generator=fixed_generator()).tolist()),
    ]  # fmt: skip
    found = {
        name: [ours(name, options)(case, 0) for options in settings] for name in ("pgd", "apgd-ce")
    }
    for name, runs in found.items():
        runs.append(without_refill(case, name))
    unlike = sum(int(differs(runs[0], run).sum()) for runs in found.values() for run in runs[1:])
    note = (
        f"{len(settings)} batches and orders, and 32 at a time without refill; PGD-40, APGD-CE-100"
    )
    return single_result(target, unlike, "examples", found["pgd"], note)


def without_refill(case: Case, name: str) -> RunResult:
    """The same examples in blocks of 32 slots that are never refilled."""
    parts = []
    for part in torch.split(torch.arange(len(case.x)), 32):
        rest = sorted(set(range(len(case.x))) - set(part.tolist()))
        run = ours(name, RunOptions(slots=32, finished=rest))(case, 0)
        parts.append((run.broken[part], run.image[part]))
    broken, image = (torch.cat(column) for column in zip(*parts, strict=True))
    return RunResult(broken, torch.zeros(len(image)), image, 0, 0, 0, 0)


def differs(one: RunResult, run: RunResult) -> Tensor:
    """[n] bool: the verdict or the image of an example differs."""
    return (one.broken != run.broken) | (one.image != run.image).flatten(1).any(1)


def fixed_generator() -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


def failed_verifications(target: Target, scale: Scale) -> TargetResult:
    """Count adversarial examples that fail a second, independent verification."""
    failed, total, runs = 0, 0, []
    for name in ("digits-adv", "resnet18-std", "resnet18-adv"):
        case = target.case(name, scale).first(64 if "resnet" in name else target.examples)
        for numeric in Numeric:
            run = ours("pgd", RunOptions(numeric, audit=False))(case, 0)
            found = (run.broken & case.correct).nonzero()[:, 0]
            failed += int((~verified_again(case, run, found)).sum())
            total += len(found)
            runs.append(run)
    note = f"{total} adversarial examples in {len(runs)} cells"
    return single_result(target, failed, "of all adversarial examples", runs[:1], note)


def verified_again(case: Case, run: RunResult, where: Tensor) -> Tensor:
    """[m] bool: misclassified, in the box and in the ball; one image per model call, float64."""
    model = freeze(copy.deepcopy(case.model))
    adv, x = run.image[where], case.x[where]
    with torch.no_grad():
        logits = [model(image[None]) for image in adv]
    label = torch.cat(logits).argmax(1) if logits else case.y[where]
    change = (adv.double() - x.double()).abs().flatten(1).amax(1)
    in_box = ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
    return (label != case.y[where]) & in_box & (change <= float(case.ball.radius) + 1e-6)


MATRIX_ATTACKS = ("fgsm", "apgd-ce", "pgd-twice", "square")
"""In the order of a cascade: attacks that break most for their cost come first."""
MATRIX_PEERS = (
    peer("torchattacks", peer_attacks.torchattacks_fgsm),
    peer("pyautoattack", peer_attacks.apgd),
    peer("torchattacks", peer_attacks.torchattacks_restarts),
    peer("pyautoattack", peer_attacks.square(1000)),
)  # fmt: skip


def matrix(names: tuple[str, ...], mode: str, options: RunOptions) -> Measure:
    """Every attack on every model: ours in full or rank mode, the peers cell by cell."""
    if mode == "rank":
        mine = [cascade(MATRIX_ATTACKS, options)]
    else:
        mine = [ours(attack, options) for attack in MATRIX_ATTACKS]

    def measure(target: Target, scale: Scale) -> TargetResult:
        the_cases = [target.case(name, scale) for name in names]
        pairs = []
        for seed in range(target.times(scale)):
            before = unit_cost.measure(the_cases[0].model, the_cases[0].x, the_cases[0].y)
            our_run = run_matrix(the_cases, mine, seed)
            peer_run = run_matrix(the_cases, MATRIX_PEERS, seed)
            after = unit_cost.measure(the_cases[0].model, the_cases[0].x, the_cases[0].y)
            pairs.append(Pair(our_run, peer_run, before.minimum(after)))
        fault = strength_fault(pairs)
        return summarised(target, the_cases[0], pairs, fault)

    return measure


def run_matrix(the_cases: Sequence[Case], runners: Sequence[Runner], seed: int) -> RunResult:
    """One result of all cells: the worst case over attacks, models concatenated."""
    runs = [[runner(case, seed) for runner in runners] for case in the_cases]
    flat = [run for column in runs for run in column]
    worst = [torch.stack([run.broken for run in column]).any(0) for column in runs]
    return RunResult(
        torch.cat(worst), torch.zeros(0), torch.zeros(0), sum(run.seconds for run in flat),
        sum(run.forwards for run in flat), sum(run.gradients for run in flat),
        sum(run.calls for run in flat),
    )  # fmt: skip


def external_overhead(target: Target, scale: Scale) -> TargetResult:
    """The time of a Foolbox attack in the harness over its time alone."""
    peer_attacks.require_package("foolbox")
    # As for every peer here, the library attacks a model whose parameters require gradients.
    figures = {
        frozen: ratio(library_pairs(
            small_cnn(), n=target.examples, repeats=scale.pairs or 5, frozen=frozen
        ))
        for frozen in (False, True)
    }  # fmt: skip
    note = f"{figures[True]:.2f} where the library alone attacks a frozen model too"
    row = single_result(target, figures[False], "of its time alone", [], note)
    return replace(row, examples=target.examples, pairs=scale.pairs or 5)
