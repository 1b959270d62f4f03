"""Square attack in Linf: random search over square-shaped changes that needs scores only.

Andriushchenko et al. 2020, arXiv:1912.00049.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, hookimpl, margin, per_row

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULE_STEPS = 10000  # steps of the schedule in which HALVINGS are counted
BITS = 60  # random bits in one keyed word
FRACTION = 20  # of these bits for one coordinate


class State(NamedTuple):
    """State of the random search."""

    adv: Tensor
    """[n, C, H, W]: the best image so far; before the first query the stripes."""
    margin: Tensor
    """[n]: its margin max_j z_j - z_y; minus infinity before the first query."""
    low: Tensor
    high: Tensor
    """[n, C, H, W]: the two opposite corners of the ball between which each value is chosen."""


class Proposal(NamedTuple):
    """The keyed random draw of one step: place of the square, and sign of each channel."""

    place: Tensor
    """[n] int64 of BITS random bits."""
    up: Tensor
    """[n, C, 1, 1] bool: the channel takes its upper corner."""


@dataclass(frozen=True)
class Square:
    """Set a random square to +-eps and keep it where the margin grows (arXiv:1912.00049).

    The square covers the share p of the image, and p is halved after HALVINGS. With a thousand
    steps that schedule is rescaled to the length of the search, which is better for a short one;
    with five thousand it counts absolute steps, as AutoAttack does (arXiv:2003.01690).
    """

    name: str = "square"
    steps: int = 1000
    share: float = 0.8
    """p of the first square."""
    rescaled: bool = True
    """HALVINGS are rescaled from SCHEDULE_STEPS to the length of this search."""

    needs = Access.SCORES
    norms = ("Linf",)
    goals = ("untargeted",)
    cite = "arXiv:1912.00049"
    summary = "Square attack: random search over square-shaped changes that needs scores only."

    def start(self, problem: Problem) -> State:
        """Vertical stripes of +-eps, with one random sign for each channel and column."""
        x, every = problem.x, torch.ones_like(problem.x)
        low, high = problem.ball.farthest(-every, x), problem.ball.farthest(every, x)
        up = problem.integers("stripes", 2, (x.shape[1], 1, x.shape[3])) > 0
        adv = torch.where(up, high, low)
        return State(adv, torch.full_like(x[:, 0, 0, 0], -torch.inf), low, high)

    def step(self, problem: Problem, state: State) -> State:
        """Query the stripes first, then a candidate with one changed square."""
        query = self.candidate(problem, state)
        new_margin = margin(problem.logits(query), problem.y)
        better = per_row(new_margin > state.margin)
        adv = torch.where(better, query, state.adv)
        return state._replace(adv=adv, margin=torch.fmax(new_margin, state.margin))

    def stays(self, before: State, after: State) -> Tensor:
        """Whether the margin did not grow, [n] bool."""
        return after.margin == before.margin

    def candidate(self, problem: Problem, state: State) -> Tensor:
        """The best image with one square set to corners of the ball, [n, C, H, W].

        A proposal that would change nothing has its signs flipped, so that no query is wasted.
        """
        adv, low, high = state.adv, state.low, state.high
        place, up = draw_proposal(problem)
        inside = square_mask(place, self.side(problem), *adv.shape[2:])
        changes = torch.where(up, high, low).ne(adv).logical_and_(inside)
        up = up.logical_xor_(per_row(~changes.flatten(1).any(1)))
        return torch.where(inside, torch.where(up, high, low), adv)

    def side(self, problem: Problem) -> Tensor:
        """The side of the square, of area p H W and below the image's, [n] int64; first 0."""
        return square_sides(self, *problem.x.shape[2:], problem.t.device)[problem.t]


@functools.lru_cache(maxsize=64)
def square_sides(attack: Square, height: int, width: int, device: torch.device) -> Tensor:
    """The side of each step's square, [steps + 1] int64; the first step changes nothing."""
    most = max(1, min(height, width) - 1)
    edges = [
        max(1, min(round((share * height * width) ** 0.5), most))
        for share in area_shares(attack.share, attack.steps, rescaled=attack.rescaled)
    ]
    return torch.tensor([0, *edges[1:]], device=device)


def area_shares(first: float, steps: int, *, rescaled: bool) -> list[float]:
    """The share p of the image at each step, [steps + 1] values, halved after HALVINGS."""
    scale = steps if rescaled else SCHEDULE_STEPS
    return [
        first * 0.5 ** sum(t * SCHEDULE_STEPS > at * scale for at in HALVINGS)
        for t in range(steps + 1)
    ]


def draw_proposal(problem: Problem) -> Proposal:
    """All random numbers of one step: one word for the place, then one bit for each channel."""
    channels = problem.x.shape[1]
    words = problem.integers("square", 2**BITS, (1 + -(-channels // BITS),))
    return Proposal(words[:, 0], random_bits(words[:, 1:], channels) > 0)


def random_bits(words: Tensor, count: int) -> Tensor:
    """The first `count` bits of words [n, m] of BITS bits each, as [n, count, 1, 1] int64."""
    place = torch.arange(min(count, BITS), device=words.device)
    flat = (words[:, :, None] >> place & 1).flatten(1)[:, :count]
    return flat.view(len(words), count, 1, 1)


def square_mask(place: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """The mask [n, 1, H, W] of a square of `side` [n] in each image, at a random place.

    `place` [n] holds the random bits.
    """
    rows = interval_mask(place, side, height)
    columns = interval_mask(place >> FRACTION, side, width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def interval_mask(place: Tensor, side: Tensor, length: int) -> Tensor:
    """The mask [n, length] of `side` [n] neighbouring pixels at a random offset (`place` [n])."""
    position = torch.arange(length, device=side.device)
    offset = position - random_offset(place, side, length)[:, None]
    return (offset >= 0) & (offset < side[:, None])


def random_offset(place: Tensor, side: Tensor, length: int) -> Tensor:
    """A random integer in [0, length - side] for each row, [n] int64.

    floor(u (length - side + 1)), with u of FRACTION bits of `place` [n].
    """
    spread: Tensor = (place & (2**FRACTION - 1)) * (length - side + 1) >> FRACTION
    return spread


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack with 1000 queries, with AutoAttack's 5000, and with 10,000."""
    yield Square()
    yield Square("square-5000", 5000, rescaled=False)
    yield Square("square-long", 10_000)
