"""Square attack in L2 and L1: random search that moves budget from one window to another.

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
from plugins.attacks.square import BITS, FRACTION, area_shares, random_bits, random_offset

TILES = 5  # along the shorter side of the first image
MIN_SIDE = 3  # pixels, side of the smallest window
OVERSHOOT = (
    1e3  # radii; a change this long is projected onto the sphere or onto a corner of the box
)
TINY = 1e-12  # smallest norm that a window is divided by


class State(NamedTuple):
    """State of the random search."""

    adv: Tensor
    """[n, C, H, W]: the best image so far; before the first query the tiles."""
    margin: Tensor
    """[n]: its margin; minus infinity before the first query."""


class Windows(NamedTuple):
    """The two windows of one step, and the change of the target window."""

    pattern: Tensor
    """[n, C, H, W]: the signed pattern, zero outside the target window."""
    target: Tensor
    """[n, 1, H, W] bool: the window that receives budget."""
    source: Tensor
    """[n, 1, H, W] bool: the window whose change is removed."""


class Schedule(NamedTuple):
    """The windows of a search for images of one size."""

    kind: Tensor
    """[steps + 1] int64: index into `side` and `pattern` for each step."""
    side: Tensor
    """[kinds] int64: the sides of the windows in pixels."""
    pattern: Tensor
    """[kinds, S, S]: their patterns, zero beyond the side."""


@dataclass(frozen=True)
class SquareL2L1:
    """Square attack in L2 or L1: move budget between two windows (arXiv:1912.00049).

    In the target window the change becomes, channel by channel, (+-eta + delta / |delta|), scaled
    to the norm of both windows and of the unspent budget; eta is a positive pyramid beside a
    negative one. The change of the source window is removed. In L2 the image is then extended to
    the radius or to the corner of the box; in L1 it is projected.
    """

    name: str
    power: int
    """p of the norm."""
    steps: int = 1000
    share: float = 0.8
    """The first window's share of the image."""
    rescaled: bool = True
    """The schedule is rescaled to the length of this search, instead of counted in absolute steps.
    """
    examples: int = 0
    """Number of examples it runs on, the first ones; 0: all."""

    needs = Access.SCORES
    goals = ("untargeted",)
    cite = "arXiv:1912.00049"
    summary = (
        "Square attack: random search that moves budget between windows and needs scores only."
    )

    @property
    def norms(self) -> tuple[str, ...]:
        """The norm of `power`."""
        return (f"L{self.power}",)

    def start(self, problem: Problem) -> State:
        """Tiles of patterns over the image, with one random sign for each tile and channel."""
        x, edge = problem.x, max(1, min(problem.x.shape[2:]) // TILES)
        down, across = (torch.arange(length, device=x.device) for length in x.shape[2:])
        tiles = (-(-x.shape[2] // edge), -(-x.shape[3] // edge))
        sign = 2 * problem.integers("tiles", 2, (x.shape[1], *tiles)) - 1
        sign = sign[:, :, (down // edge)[:, None], across // edge]
        shape = update_pattern(edge, self.power, x.device)[(down % edge)[:, None], across % edge]
        return State(
            self.projected(problem, shape * sign), torch.full_like(x[:, 0, 0, 0], -torch.inf)
        )

    def step(self, problem: Problem, state: State) -> State:
        """Query the tiles first, then the best image with budget moved to a new window."""
        moved = self.projected(problem, self.moved_budget(problem, state.adv - problem.x))
        query = torch.where(per_row(problem.t == 0), state.adv, moved)
        new_margin = margin(problem.logits(query), problem.y)
        adv = torch.where(per_row(new_margin > state.margin), query, state.adv)
        return State(adv, torch.fmax(new_margin, state.margin))

    def stays(self, before: State, after: State) -> Tensor:
        """Whether the margin did not grow, [n] bool."""
        return after.margin == before.margin

    def moved_budget(self, problem: Problem, change: Tensor) -> Tensor:
        """The change with the source window cleared and the target window filled, [n, C, H, W].

        It is not projected yet.
        """
        windows = self.windows(problem)
        size = change.abs() if self.power == 1 else change.square()
        budget = problem.ball.radius**self.power
        unspent = (budget - size.sum((1, 2, 3), keepdim=True)).clamp_min(0) / change.shape[1]
        freed = (size * (windows.target | windows.source)).sum((2, 3), keepdim=True)
        filled = windows.pattern + self.normalized(torch.where(windows.target, change, 0))
        filled = self.normalized(filled) * self.root(unspent + freed)
        return torch.where(windows.target, filled, change.masked_fill(windows.source, 0))

    def windows(self, problem: Problem) -> Windows:
        """Two windows of one size and the pattern of the target window, from one keyed draw."""
        _, channels, height, width = problem.x.shape
        plan = schedule(self, height, width, problem.t.device)
        kind = plan.kind[problem.t]
        side = plan.side[kind]
        words = problem.integers("windows", 2**BITS, (2 + -(-channels // BITS),))
        down, across = offsets(words[:, 0], side, height, width)
        to, gone = (
            window_mask(down, across, side),
            window_mask(*offsets(words[:, 1], side, height, width), side),
        )
        transposed = words[:, :1, None] >> (BITS - 1) > 0
        row, column = torch.where(transposed, across, down), torch.where(transposed, down, across)
        shape = plan.pattern[kind[:, None, None], row * to, column * to] * to
        sign = 2 * random_bits(words[:, 2:], channels) - 1
        return Windows(shape[:, None] * sign, to[:, None], gone[:, None])

    def projected(self, problem: Problem, change: Tensor) -> Tensor:
        """The image [n, C, H, W] with this change, projected; in L2 with the whole budget."""
        far = change if self.power == 1 else OVERSHOOT * change
        return problem.ball.project(problem.x + far, problem.x)

    def normalized(self, filled: Tensor) -> Tensor:
        """The change [n, C, H, W], scaled to norm 1 in each channel, or zero."""
        size = filled.abs() if self.power == 1 else filled.square()
        return filled / self.root(size.sum((2, 3), keepdim=True)).clamp_min(TINY)

    def root(self, size: Tensor) -> Tensor:
        """The norm whose p-th power is `size` [n, ...]."""
        return size if self.power == 1 else size.sqrt()


@functools.lru_cache(maxsize=64)
def schedule(attack: SquareL2L1, height: int, width: int, device: torch.device) -> Schedule:
    """The windows: odd sides of area p H W, at least MIN_SIDE and inside the image."""
    edges = [
        min(max(round((share * height * width) ** 0.5), MIN_SIDE) // 2 * 2 + 1, height, width)
        for share in area_shares(attack.share, attack.steps, rescaled=attack.rescaled)
    ]
    sides = sorted(set(edges))
    table = torch.zeros(len(sides), sides[-1], sides[-1], device=device)
    for kind, side in enumerate(sides):
        table[kind, :side, :side] = update_pattern(side, attack.power, device)
    kinds = torch.tensor([sides.index(edge) for edge in edges], device=device)
    return Schedule(kinds, torch.tensor(sides, device=device), table)


def update_pattern(side: int, power: int, device: torch.device) -> Tensor:
    """The pattern eta [side, side]: a pyramid in the upper half, a negative one in the lower."""
    upper = side // 2
    eta = torch.cat([pyramid(upper, side, power), -pyramid(side - upper, side, power)])
    size = eta.abs().sum() if power == 1 else eta.square().sum().sqrt()
    return (eta / size).to(torch.float32).to(device)


def pyramid(height: int, width: int, power: int) -> Tensor:
    """A pyramid [height, width] of norm 1: sum over k > r of k^-2p at r pixels from the middle."""
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    top = max(height, width) // 2 + 1
    terms = torch.arange(1, top + 1, dtype=torch.float64) ** (-4 if power == 1 else -2)
    falling = terms.flip(0).cumsum(0).flip(0)
    heights = falling[torch.maximum(down[:, None], across)]
    size = heights.sum() if power == 1 else heights.square().sum().sqrt()
    return heights / size.clamp_min(TINY)


def offsets(word: Tensor, side: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Each line's distance from the window drawn by `word` [n]: [n, H, 1] and [n, 1, W] int64."""
    rows, columns = (torch.arange(length, device=word.device) for length in (height, width))
    down = rows - random_offset(word, side, height)[:, None]
    across = columns - random_offset(word >> FRACTION, side, width)[:, None]
    return down[:, :, None], across[:, None, :]


def window_mask(down: Tensor, across: Tensor, side: Tensor) -> Tensor:
    """The mask [n, H, W] of a window with this side [n]."""
    edge = side[:, None, None]
    return ((down >= 0) & (down < edge)) & ((across >= 0) & (across < edge))


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack in each norm with 1000 queries, also on 100 examples, 5000 and 10,000."""
    for power in (2, 1):
        yield SquareL2L1(f"square-l{power}", power)
        yield SquareL2L1(f"square-l{power}-5000", power, 5000, rescaled=False)
        yield SquareL2L1(f"square-l{power}-long", power, 10_000)
        yield SquareL2L1(f"square-l{power}-100", power, examples=100)
