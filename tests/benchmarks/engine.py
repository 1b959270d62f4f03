"""Targets about the engine itself: its overhead, its calls, its sameness, the whole matrix."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.core.cells import Numeric
from bench.core.errors import UnavailableError
from bench.engine.model_access import freeze
from bench.plugin import Fraction, Linf
from tests.benchmarks import models, peers, unit_cost
from tests.benchmarks.models import World, world
from tests.benchmarks.ours import Side, Way, cascade, ours
from tests.benchmarks.outcome import Outcome
from tests.benchmarks.peers import peer
from tests.benchmarks.row import (
    WARM,
    Both,
    Measure,
    Pair,
    Row,
    Scale,
    Target,
    compared,
    strength,
)

SLOTS = 256
LONG = 10  # steps: shorter attacks are played several times
NARROW = Linf(Fraction(1, 25500))
"""A hundredth of a grey level: nobody breaks, every row makes every step."""


def alone(target: Target, figure: float, unit: str, runs: Sequence[Outcome], note: str = "") -> Row:
    """A row without a peer: its figure is what the bar speaks of."""
    return Row(
        target.key, target.what, unit, figure, None, figure, target.bar.value, target.bar.at_most,
        target.bar.holds(figure), robust_ours=runs[0].robust if runs else None,
        forwards=Both(runs[0].forwards if runs else 0),
        gradients=Both(runs[0].gradients if runs else 0),
        examples=len(runs[0].broken) if runs else target.examples, pairs=len(runs), note=note,
    )  # fmt: skip


def overhead(name: str, attack: str, **changes: int) -> Measure:
    """Seconds over those of its steps and its look alone, where no row ever leaves."""

    def measure(target: Target, scale: Scale) -> Row:
        place = target.place(name, scale)._replace(ball=NARROW)
        side = ours(attack, Way(slots=SLOTS), **changes)
        runs = [side(place.first(WARM), 0)]
        steps = round(runs[0].gradients / runs[0].robust)
        figures = []
        for seed in range(target.times(scale)):
            before = sustained(place, steps)
            seconds = 0.0
            for _ in range(again := max(1, LONG // steps)):
                runs.append(side(place, seed))
                seconds += runs[-1].seconds / again
            figures.append(2 * seconds / (before + sustained(place, steps)))
        note = f"over pairs {min(figures):.2f} to {max(figures):.2f}"
        row = alone(target, statistics.median(figures), "of the floor", runs[1:], note)
        return replace(row, pairs=len(figures))

    return measure


def sustained(place: World, steps: int) -> float:
    """Seconds of so many fused steps and one look on the whole batch, as they come in a row."""
    again = max(1, LONG // steps)
    since = unit_cost.now(place.x.device)
    for _ in range(again):
        for _ in range(steps):
            unit_cost.fused(place.model, place.x, place.y)
        with torch.no_grad():
            place.model(place.x)
    return (unit_cost.now(place.x.device) - since) / again


def nothing(place: World, seed: int) -> Outcome:
    """Nobody on the other side."""
    return Outcome(place.x[:, 0, 0, 0] < 0, place.x[:, 0, 0, 0], place.x, 0, 0, 0, 0)


def gradients(name: str) -> Measure:
    """How many an example PGD-40 needs."""

    def measure(target: Target, scale: Scale) -> Row:
        run = ours("pgd", Way(Numeric.FAST))(target.place(name, scale), 0)
        return alone(target, run.gradients, "gradients an example", [run])

    return measure


def everything(name: str, count: int) -> World:
    """The last `count` of a recipe's images, those it was taught on too."""
    there = world(name)
    x, y = models.images(models.RECIPES[name].network)
    return models.opened(name, there.model, x[-count:], y[-count:], there.ball)


def calls(target: Target, scale: Scale) -> Row:
    """Ours, counted at the model, against batches that shrink and are never filled up again."""
    place = everything("digits-std", min(target.examples, scale.examples or target.examples))
    run = ours("pgd", Way(slots=96))(place, 0)
    whole, spent = compaction(place)
    row = alone(target, whole / run.calls, "times fewer", [run])
    return replace(row, ours=float(run.calls), peer=float(whole), unit="calls",
                   gradients=Both(run.gradients, spent))  # fmt: skip


def compaction(place: World, batch: int = 96) -> tuple[int, float]:
    """Model calls and gradients an example of PGD-40 where a batch drops what is broken."""
    made, spent = 0, 0
    for part in torch.split(place.right.nonzero()[:, 0], batch):
        there = place._replace(x=place.x[part], y=place.y[part], clean=place.clean[part])
        steps = torch.tensor(shrinking(there))
        made, spent = made + len(steps), spent + int(steps.sum())
    return made, spent / len(place.x)


def shrinking(place: World) -> list[int]:
    """How many rows each call has: up to 40 with a gradient and a last look."""
    x, y, eps = place.x, place.y, float(place.ball.radius)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    adv = (x + eps * (2 * noise - 1)).clamp(0, 1)
    sizes = []
    for _ in range(41):
        if not len(adv):
            break
        sizes.append(len(adv))
        leaf = adv.detach().requires_grad_()
        logits = place.model(leaf)
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, leaf)
        left = logits.argmax(1) == y
        adv, x, y, slope = adv[left], x[left], y[left], slope[left]
        adv = adv + eps / 10 * slope.sign()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
    return sizes


def differing(target: Target, scale: Scale) -> Row:
    """Play the same examples in other batches and orders; compare verdicts, pixels and counts."""
    place = target.place("digits-std", scale)
    count = len(place.x)
    ways = [
        Way(slots=64), Way(slots=96), Way(slots=256),
        Way(slots=64, order=list(reversed(range(count)))),
        Way(slots=64, order=torch.randperm(count, generator=seeded()).tolist()),
    ]  # fmt: skip
    found = {name: [ours(name, way)(place, 0) for way in ways] for name in ("pgd", "apgd-ce")}
    for name, runs in found.items():
        runs.append(piecewise(place, name))
    unlike = sum(int(other(runs[0], run).sum()) for runs in found.values() for run in runs[1:])
    note = f"{len(ways)} batches and orders, and 32 at a time without refill; PGD-40, APGD-CE-100"
    return alone(target, unlike, "examples", found["pgd"], note)


def piecewise(place: World, name: str) -> Outcome:
    """The same examples, 32 at a time: what leaves is never replaced."""
    parts = []
    for part in torch.split(torch.arange(len(place.x)), 32):
        rest = sorted(set(range(len(place.x))) - set(part.tolist()))
        run = ours(name, Way(slots=32, finished=rest))(place, 0)
        parts.append((run.broken[part], run.image[part]))
    broken, image = (torch.cat(column) for column in zip(*parts, strict=True))
    return nothing(place, 0)._replace(broken=broken, image=image)


def other(one: Outcome, run: Outcome) -> Tensor:
    """[n] bool: these examples got another verdict or other pixels."""
    return (one.broken != run.broken) | (one.image != run.image).flatten(1).any(1)


def seeded() -> torch.Generator:
    """A fixed one."""
    return torch.Generator().manual_seed(0)


def false_wins(target: Target, scale: Scale) -> Row:
    """Verify every stored win again: alone, in float64 distances, on a model never attacked."""
    fail, wins, runs = 0, 0, []
    for name in ("digits-adv", "resnet18-std", "resnet18-adv"):
        place = target.place(name, scale).first(64 if "resnet" in name else target.examples)
        for numeric in Numeric:
            run = ours("pgd", Way(numeric, audit=False))(place, 0)
            won = (run.broken & place.right).nonzero()[:, 0]
            fail, wins = fail + int((~stands(place, run, won)).sum()), wins + len(won)
            runs.append(run)
    return alone(target, fail, "of all wins", runs[:1], f"{wins} wins in {len(runs)} cells")


def stands(place: World, run: Outcome, where: Tensor) -> Tensor:
    """[m] bool: wrong, finite, in the box and in the ball, one image at a time."""
    model = freeze(copy.deepcopy(place.model))
    adv, x = run.image[where], place.x[where]
    with torch.no_grad():
        answers = [model(image[None]) for image in adv]
    label = torch.cat(answers).argmax(1) if answers else place.y[where]
    change = (adv.double() - x.double()).abs().flatten(1).amax(1)
    boxed = ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
    return (label != place.y[where]) & boxed & (change <= float(place.ball.radius) + 1e-6)


ATTACKS = ("fgsm", "apgd-ce", "pgd-twice", "square")
"""In the order of a cascade: those that break most for their price come first."""
PEERS = (
    peer("torchattacks", peers.torchattacks_fgsm), peer("pyautoattack", peers.apgd),
    peer("torchattacks", peers.torchattacks_restarts), peer("pyautoattack", peers.square(1000)),
)  # fmt: skip


def matrix(names: tuple[str, ...], mode: str, way: Way) -> Measure:
    """Every attack on every model: ours in one of two modes, theirs each cell for itself."""
    mine = (cascade(ATTACKS, way),) if mode == "rank" else tuple(ours(n, way) for n in ATTACKS)

    def measure(target: Target, scale: Scale) -> Row:
        places = [target.place(name, scale) for name in names]
        pairs = []
        for seed in range(target.times(scale)):
            unit = unit_cost.measured(places[0].model, places[0].x, places[0].y)
            one, two = whole(places, mine, seed), whole(places, PEERS, seed)
            again = unit_cost.measured(places[0].model, places[0].x, places[0].y)
            pairs.append(Pair(one, two, unit.least(again)))
        fault = strength(pairs)
        return compared(target, places[0], pairs, fault)

    return measure


def whole(places: Sequence[World], sides: Sequence[Side], seed: int) -> Outcome:
    """All cells as one: worst case over the sides, models side by side."""
    runs = [[side(place, seed) for side in sides] for place in places]
    flat = [run for column in runs for run in column]
    worst = [torch.stack([run.broken for run in column]).any(0) for column in runs]
    return Outcome(
        torch.cat(worst), torch.zeros(0), torch.zeros(0), sum(run.seconds for run in flat),
        sum(run.forwards for run in flat), sum(run.gradients for run in flat),
        sum(run.calls for run in flat),
    )  # fmt: skip


def guarded(target: Target, scale: Scale) -> Row:
    """What the harness adds to a library's own attack."""
    peers.installed("foolbox")
    try:
        bench: Any = import_module("tests.tools.overhead")
    except ModuleNotFoundError as error:
        raise UnavailableError("libraries cannot be played inside the harness here yet.") from error
    from tests.fixtures.known_models import small_cnn

    # Bare as its users run it: on a model as training leaves it, like every peer here.
    figures = {
        frozen: float(bench.ratio(bench.library_pairs(
            small_cnn(), n=target.examples, repeats=scale.pairs or 5, frozen=frozen
        )))
        for frozen in (False, True)
    }  # fmt: skip
    note = f"{figures[True]:.2f} where the bare library gets a frozen model too"
    row = alone(target, figures[False], "of its bare time", [], note)
    return replace(row, examples=target.examples, pairs=scale.pairs or 5)
