"""Models whose optimum is known, and one attack played against one model."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bench.engine import Game, play
from bench.plugin import Attack, State, Traits
from bench.problem import Rows, iterate
from bench.records import Access, Budget
from bench.target import Target
from bench.threat import Goal, PerturbationSet
from bench.verify import Court, Referee, wrong

UNTARGETED = Goal()


class Result(NamedTuple):
    """What the referee says of each example, in order: [n] each."""

    image: Tensor
    broken: Tensor
    distance: Tensor
    forwards: Tensor
    gradients: Tensor
    looks: Tensor
    step: Tensor
    run: Tensor


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Logits W x + b; `weight` is [K, d]."""
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return nn.Sequential(nn.Flatten(), layer).requires_grad_(False)


def binary(weight: Tensor, offset: float = 0.0) -> nn.Module:
    """Two classes whose logits differ by f(x) = <w, x> + offset: class 1 where f > 0."""
    both = torch.stack([-weight, weight]) / 2
    return linear(both, torch.tensor([-offset, offset]) / 2)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def interior(n: int, pixels: int, seed: int = 0) -> Tensor:
    """[n, 1, 1, pixels] in [.4, .6]: the box is out of reach of a radius under .4."""
    noise = torch.rand(n, 1, 1, pixels, generator=torch.Generator().manual_seed(seed))
    return 0.4 + 0.2 * noise


def rows_of(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: PerturbationSet,
    *,
    example: Tensor | None = None,
    run: Tensor | None = None,
    goal: Goal = UNTARGETED,
    aim: Tensor | None = None,
    access: Access = Access.GRADIENTS,
    name: str = "",
) -> Rows:
    """The Problem of these rows, before their first step."""
    target = Target(model, access=access)
    rows = Rows(
        target, ball, goal, x, y, aim=torch.full_like(y, -1) if aim is None else aim,
        clean=target.logits(x), example=torch.arange(len(x)) if example is None else example,
        seed=0, name=name or attack.name, budget=Budget(),
    )  # fmt: skip
    if run is not None:
        rows.run = run
        rows.rekey()
    return rows


def states(attack: Attack, rows: Rows, steps: int | None = None) -> Iterator[State]:
    """The start and every later state."""
    state = attack.start(rows.take(torch.arange(len(rows.x))))
    yield state
    for _ in range(attack.steps if steps is None else steps):
        state = attack.step(rows, state)
        rows.t = rows.t + 1
        yield state


def last(attack: Attack, rows: Rows, steps: int | None = None) -> Tensor:
    """The last iterate of one run."""
    *_, state = states(attack, rows, steps)
    return iterate(state)


def duel(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: PerturbationSet,
    *,
    goal: Goal = UNTARGETED,
    aim: Tensor | None = None,
    access: Access = Access.GRADIENTS,
    budget: Budget | None = None,
    source: nn.Module | None = None,
    rejects: bool = False,
) -> Result:
    """Play every example with the engine and let the referee judge."""
    aim = torch.full_like(y, -1) if aim is None else aim
    joint = Traits.of(attack).joint
    defense = Target(model, access=access, rejects=rejects, joint=joint)
    door = defense if source is None else Target(source)
    court = Court(model, rejects=rejects)
    clean = court.answer(x, range(-(-len(x) // 64)))
    game = Game(
        attack=attack, door=door, defense=defense, ball=ball, goal=goal,
        budget=budget or Budget(), x=x, y=y, aim=aim,
        clean=clean.logits if source is None else door.logits(x),
        lost=wrong(clean.votes, y, aim, goal), seed=0, slots=64,
    )  # fmt: skip
    minimises = Traits.of(attack).minimises
    referee = Referee(court, ball, goal, x, y, aim, minimises=minimises)
    parts = list(play(game, referee.confirm))
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = joined[0].argsort()
    item, image, forwards, gradients, looks, step, run, _ = (column[order] for column in joined)
    assert torch.equal(item, torch.arange(len(x)))
    outcomes = [referee.judge(part) for part in parts]
    verdicts = type(outcomes[0]).concatenate(outcomes)
    broken = torch.from_numpy(verdicts.verdict == 1)
    distance = torch.from_numpy(verdicts.distance)
    return Result(image, broken, distance, forwards, gradients, looks, step, run)


def digits(n: int) -> tuple[Tensor, Tensor]:
    """The first n images of 8 x 8 handwriting and their labels, the caller's own."""
    pixels, labels = _handwriting()
    return torch.from_numpy(pixels[:n].copy())[:, None], torch.from_numpy(labels[:n].copy())


@functools.cache
def _handwriting() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    data = load_digits()
    return (np.round(255 * data.images / 16) / 255).astype(np.float32), data.target.astype(np.int64)


@functools.cache
def small_cnn() -> nn.Module:
    """An undefended network of some 40,000 weights, right on 99 % of what it has seen."""
    x, y = digits(1000)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(12):
            for batch in torch.randperm(len(x)).view(-1, 50):
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
    model.zero_grad()
    return model.eval().requires_grad_(False)
