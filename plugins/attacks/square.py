"""Square: random search that repaints one square at a time. Scores only."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_image

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULE_STEPS = 10000  # steps of the schedule in which HALVINGS are counted
BITS = 60  # random bits taken from one keyed word
FRACTION = 20  # of them for one coordinate


class State(NamedTuple):
    """Where the search stands."""

    adv: Tensor
    """[n, C, H, W]: the best image so far; before the first question the stripes."""
    margin: Tensor
    """[n]: its margin max_j z_j - z_y, rising; minus infinity before the first question."""
    low: Tensor
    high: Tensor
    """[n, C, H, W]: the two opposite corners of the ball that colours are taken from."""


class Proposal(NamedTuple):
    """One keyed draw: where the square lies, and which corner each channel takes."""

    place: Tensor
    """[n] int64 of BITS random bits."""
    up: Tensor
    """[n, C, 1, 1] bool."""


@dataclass(frozen=True)
class Square:
    """Repaint a random square with +-eps, keep it where the margin gains (arXiv:1912.00049).

    The square covers the share p of the image, and p halves at HALVINGS as the search goes on. The
    thousand steps spread that schedule over themselves, which serves a short search better; the
    five thousand count it as the standard battery does (arXiv:2003.01690), in absolute steps.
    """

    name: str = "square"
    steps: int = 1000
    share: float = 0.8
    """p of the first square."""
    rescaled: bool = True
    """HALVINGS are counted in steps of SCALE over this search, not in steps themselves."""

    needs = Access.SCORES
    norms = ("Linf",)
    goals = ("untargeted",)
    cite = "arXiv:1912.00049"
    summary = "Random search over squares of extreme pixels that asks for scores only."

    def start(self, problem: Problem) -> State:
        """Vertical stripes of +-eps, one sign for each channel and column."""
        x, every = problem.x, torch.ones_like(problem.x)
        low, high = problem.ball.farthest(-every, x), problem.ball.farthest(every, x)
        up = problem.integers("stripes", 2, (x.shape[1], 1, x.shape[3])) > 0
        adv = torch.where(up, high, low)
        return State(adv, torch.full_like(x[:, 0, 0, 0], -torch.inf), low, high)

    def step(self, problem: Problem, state: State) -> State:
        """Ask the stripes first, then a repainted square of each row."""
        question = self.candidate(problem, state)
        gain = margin(problem.logits(question), problem.y)
        better = per_image(gain > state.margin)
        adv = torch.where(better, question, state.adv)
        return state._replace(adv=adv, margin=torch.fmax(gain, state.margin))

    def stays(self, before: State, after: State) -> Tensor:
        """[n] bool: the question did not gain."""
        return after.margin == before.margin

    def candidate(self, problem: Problem, state: State) -> Tensor:
        """[n, C, H, W]: the best image with one square at an extreme of the ball.

        Colours that would change nothing are turned round, or the question would be wasted.
        """
        adv, low, high = state.adv, state.low, state.high
        place, up = draw_proposal(problem)
        inside = square_mask(place, self.side(problem), *adv.shape[2:])
        changes = torch.where(up, high, low).ne(adv).logical_and_(inside)
        up = up.logical_xor_(per_image(~changes.flatten(1).any(1)))
        return torch.where(inside, torch.where(up, high, low), adv)

    def side(self, problem: Problem) -> Tensor:
        """[n] int64: the square's side, of area p H W and never the whole image; 0 at first."""
        return square_sides(self, *problem.x.shape[2:], problem.t.device)[problem.t]


@functools.lru_cache(maxsize=64)
def square_sides(attack: Square, height: int, width: int, device: torch.device) -> Tensor:
    """[steps + 1] int64: the side of each step's square; the first step repaints nothing."""
    most = max(1, min(height, width) - 1)
    edges = [
        max(1, min(round((share * height * width) ** 0.5), most))
        for share in area_shares(attack.share, attack.steps, rescaled=attack.rescaled)
    ]
    return torch.tensor([0, *edges[1:]], device=device)


def area_shares(first: float, steps: int, *, rescaled: bool) -> list[float]:
    """[steps + 1]: the share p of the image at each step, halved after HALVINGS."""
    scale = steps if rescaled else SCHEDULE_STEPS
    return [
        first * 0.5 ** sum(t * SCHEDULE_STEPS > at * scale for at in HALVINGS)
        for t in range(steps + 1)
    ]


def draw_proposal(problem: Problem) -> Proposal:
    """All that one step draws, in one go: a word for the place, then a bit for each channel."""
    channels = problem.x.shape[1]
    words = problem.integers("square", 2**BITS, (1 + -(-channels // BITS),))
    return Proposal(words[:, 0], random_bits(words[:, 1:], channels) > 0)


def random_bits(words: Tensor, count: int) -> Tensor:
    """[n, count, 1, 1] int64: the first bits of words [n, m] of BITS bits."""
    place = torch.arange(min(count, BITS), device=words.device)
    flat = (words[:, :, None] >> place & 1).flatten(1)[:, :count]
    return flat.view(len(words), count, 1, 1)


def square_mask(place: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """[n, 1, H, W] bool: a square of `side` [n] somewhere inside each image."""
    rows = interval_mask(place, side, height)
    columns = interval_mask(place >> FRACTION, side, width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def interval_mask(place: Tensor, side: Tensor, length: int) -> Tensor:
    """[n, length] bool: `side` neighbours, the first by the lowest FRACTION bits of `place`."""
    position = torch.arange(length, device=side.device)
    offset = position - random_offset(place, side, length)[:, None]
    return (offset >= 0) & (offset < side[:, None])


def random_offset(place: Tensor, side: Tensor, length: int) -> Tensor:
    """[n] int64 in [0, length - side]: floor(u (length - side + 1)), u of FRACTION bits."""
    spread: Tensor = (place & (2**FRACTION - 1)) * (length - side + 1) >> FRACTION
    return spread


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """A thousand questions, and the five thousand of the standard battery."""
    yield Square()
    yield Square("square-5000", 5000, rescaled=False)
