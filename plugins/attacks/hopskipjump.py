"""HopSkipJump: estimates of the decision boundary's normal from labels only.

Chen et al. 2020, arXiv:1904.02144.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.plugin import Access, Attack, Problem, StopRule, hookimpl, per_row

LOOK, SEARCH, PROBE, JUMP, GIVEN_UP = range(5)
"""Phases of a row: query noise images, bisect to the boundary, probe around the image there, try
steps along the estimated normal; and no noise image was adversarial."""
TINY = 1e-12  # smallest number that is divided by
ONE_SIDED = 0.9999  # absolute mean of phi beyond which all probes were on one side


class State(NamedTuple):
    """State of HopSkipJump; in each step a row makes one query, of its phase."""

    adv: Tensor
    """[n, C, H, W]: the nearest adversarial image; the clean image until there is one."""
    distance: Tensor
    """[n]: its distance to the clean image; infinite until there is one."""
    outer: Tensor
    """[n, C, H, W]: the adversarial image between which and the clean one a row bisects."""
    low: Tensor
    high: Tensor
    """[n]: shares of its distance between which the boundary lies."""
    signed: Tensor
    moves: Tensor
    """[n, C, H, W]: sums of phi u and of u over probes adv + u, with phi = 1 where the label is
    wrong and -1 elsewhere."""
    score: Tensor
    weight: Tensor
    """[n]: sums of phi and of 1 over the same probes."""
    phase: Tensor
    """[n] int64: one of the phases."""
    made: Tensor
    """[n] int64: queries made in this phase."""
    estimates: Tensor
    """[n] int64: estimates of the normal made."""


@dataclass(frozen=True)
class HopSkipJump:
    """HopSkipJump: bisect to the boundary, estimate its normal, step along it, and repeat.

    The normal is the mean of (phi - mean phi) u over random probes u (arXiv:1904.02144); a step
    is along its steepest direction, and the segment to the clean image shrinks all changes in L2
    and clips them in Linf. Changes for few queries: the first queries look for a nearer start;
    probes are long at first, and in L2 orthogonal to the segment, so that they measure where the
    next step must lead; older probes keep a part of their weight; a step counts only where an image
    on it is adversarial at the old distance, so the distance never rises.
    """

    name: str = "hopskipjump"
    examples: int = 100
    """Number of examples that are attacked, the first ones; 0: all."""
    steps: int = 1000
    """Queries for each example."""
    starts: int = 100
    """Noise images tried as starting points; a row without an adversarial one stays robust."""
    looks: int = 30
    """Queries after which no nearer starting point is looked for."""
    bisections: int = 10
    """Queries of one search."""
    probes: int = 12
    """Probes of the first estimate; estimate r takes sqrt(r) times as many."""
    reach: float = 1.0
    """Length of the first probes, in distances to the clean image; it falls with r^(-1/4)."""
    memory: float = 0.8
    """Weight that probes keep when the row moves to another image."""
    stride: float = 2.0
    """First step along the first normal, in distances; it falls with r^(-1/2)."""
    trials: int = 8
    """Steps tried along one normal, each half as long as the one before."""

    needs = Access.LABELS
    norms = ("Linf", "L2")
    goals = ("untargeted", "nearest")
    stop_rule = StopRule.CONVERGENCE
    minimises = True
    cite = "arXiv:1904.02144"
    summary = "Estimates of the decision boundary's normal from labels only."

    def start(self, problem: Problem) -> State:
        """No starting point yet."""
        none, zero = torch.zeros_like(problem.y), torch.zeros_like(problem.x[:, 0, 0, 0])
        images, x = torch.zeros_like(problem.x), problem.x
        return State(
            x, zero + torch.inf, x, zero, zero + 1, images, images, zero, zero,
            none + LOOK, none, none,
        )  # fmt: skip

    def step(self, problem: Problem, state: State) -> State:
        """Make one query of each row, and take its answer into account."""
        query = self._query(problem, state)
        acting = state.phase != GIVEN_UP
        wrong = problem.reaches_goal(problem.labels(query, acting)) & acting
        phase = self._next_phase(problem, state, wrong)
        state = with_probe(state, query, wrong)
        state = with_bisection(state, wrong)
        caught = wrong & ((state.phase == LOOK) | (state.phase == JUMP))
        moved = (state.phase == SEARCH) & (phase != SEARCH)
        if moved.any():
            state = self._moved(problem, state, moved)
        return state._replace(
            outer=torch.where(per_row(caught), query, state.outer),
            low=torch.where(caught, 0, state.low), high=torch.where(caught, 1, state.high),
            made=torch.where(phase == state.phase, state.made + 1, 0),
            estimates=state.estimates + ((state.phase == PROBE) & (phase == JUMP)),
            phase=phase,
        )  # fmt: skip

    def done(self, state: State) -> Tensor:
        """Whether no starting point was found, [n] bool."""
        return state.phase == GIVEN_UP

    def _next_phase(self, problem: Problem, state: State, wrong: Tensor) -> Tensor:
        """The phase [n] of each row after the answer `wrong` [n] to its query."""
        phase, made, queries = state.phase, state.made + 1, problem.t + 1
        settled = torch.where(queries < self.looks, LOOK, PROBE)
        start = torch.where(queries >= self.starts, GIVEN_UP, LOOK)
        wanted = self.probes * (state.estimates + 1).sqrt()
        after = (
            torch.where(wrong, SEARCH, torch.where(state.distance.isinf(), start, settled)),
            torch.where(made >= self.bisections, settled, SEARCH),
            torch.where(made >= wanted, JUMP, PROBE),
            torch.where(wrong, SEARCH, torch.where(made >= self.trials, PROBE, JUMP)),
        )
        for number, following in enumerate(after):
            phase = torch.where(state.phase == number, following, phase)
        return phase

    def _query(self, problem: Problem, state: State) -> Tensor:
        """The next query [n, C, H, W] of each row; what no row needs is not computed."""
        draw, known = problem.normal("probe", tuple(problem.x.shape[1:])), state.distance
        query = state.adv
        images: tuple[tuple[int, Callable[[], Tensor]], ...] = (
            (LOOK, lambda: noise(problem, draw, known)),
            (SEARCH, lambda: shrunk(problem, state.outer, (state.low + state.high) / 2)),
            (PROBE, lambda: (state.adv + self._probe(problem, state, draw)).clamp(0, 1)),
            (JUMP, lambda: self._jump(problem, state)),
        )
        for phase, image in images:
            rows = state.phase == phase
            if rows.any():
                query = torch.where(per_row(rows), image(), query)
        return query

    def _probe(self, problem: Problem, state: State, draw: Tensor) -> Tensor:
        """A random change [n, C, H, W] of the length of this estimate's probes."""
        length = self.reach / (state.estimates + 1).sqrt().sqrt() * state.distance
        if problem.ball.name == "Linf":
            return per_row(length) * draw.sign()
        # Along the segment to the clean image the sides of the boundary are known.
        draw = draw - projected(draw, state.adv - problem.x)
        return per_row(length / length_of(draw).clamp_min(TINY)) * draw

    def _jump(self, problem: Problem, state: State) -> Tensor:
        """An image along the normal, shrunk to the old distance: [n, C, H, W]."""
        mean = state.score / state.weight.clamp_min(TINY)
        slope = state.signed - per_row(mean.where(mean.abs() < ONE_SIDED, 0)) * state.moves
        half = torch.tensor([0.5**k for k in range(self.trials + 1)], device=mean.device)
        length = self.stride * state.distance / state.estimates.clamp_min(1).sqrt()
        length = length * half[state.made.clamp_max(self.trials)]
        ahead = state.adv + per_row(length) * problem.ball.steepest(slope, state.adv)
        return at_distance(problem, ahead.clamp(0, 1), state.distance)

    def _moved(self, problem: Problem, state: State, rows: Tensor) -> State:
        """The state with the rows `rows` [n] bool at the end of their search."""
        adv = torch.where(per_row(rows), shrunk(problem, state.outer, state.high), state.adv)
        distance = problem.ball.distance(adv, problem.x)
        kept = torch.where(rows, self.memory, 1)
        return state._replace(
            adv=adv, distance=torch.where(rows, distance, state.distance),
            signed=per_row(kept) * state.signed, moves=per_row(kept) * state.moves,
            score=kept * state.score, weight=kept * state.weight,
        )  # fmt: skip


def with_probe(state: State, query: Tensor, wrong: Tensor) -> State:
    """The state with the probes `query` [n, C, H, W] of PROBE rows added to the sums."""
    probing = (state.phase == PROBE).to(query.dtype)
    phi = torch.where(wrong, probing, -probing)
    move = query - state.adv
    return state._replace(
        signed=state.signed + per_row(phi) * move, moves=state.moves + per_row(probing) * move,
        score=state.score + phi, weight=state.weight + probing,
    )  # fmt: skip


def with_bisection(state: State, wrong: Tensor) -> State:
    """The state with the middle of the interval of SEARCH rows known to be `wrong` [n] or not."""
    middle, searching = (state.low + state.high) / 2, state.phase == SEARCH
    return state._replace(
        low=torch.where(searching & ~wrong, middle, state.low),
        high=torch.where(searching & wrong, middle, state.high),
    )


def projected(draw: Tensor, line: Tensor) -> Tensor:
    """The part of `draw` along `line`, [n, C, H, W] all."""
    along = (draw * line).flatten(1).sum(1) / line.square().flatten(1).sum(1).clamp_min(TINY)
    return per_row(along) * line


def length_of(change: Tensor) -> Tensor:
    """The Euclidean length [n] of changes [n, C, H, W]."""
    return change.square().flatten(1).sum(1).sqrt()


def shrunk(problem: Problem, image: Tensor, share: Tensor) -> Tensor:
    """The image [n, C, H, W] moved towards the clean one, to a share [n] of its distance.

    All changes are scaled in L2, and clipped in Linf.
    """
    change = image - problem.x
    if problem.ball.name == "Linf":
        most = per_row(share * change.flatten(1).abs().amax(1))
        return (problem.x + torch.clamp(change, -most, most)).clamp(0, 1)
    return (problem.x + per_row(share) * change).clamp(0, 1)


def at_distance(problem: Problem, image: Tensor, distance: Tensor) -> Tensor:
    """The image [n, C, H, W], shrunk to at most this distance [n]."""
    far = problem.ball.distance(image, problem.x).clamp_min(TINY)
    return shrunk(problem, image, (distance / far).clamp_max(1))


def noise(problem: Problem, draw: Tensor, distance: Tensor) -> Tensor:
    """Noise `draw` [n, C, H, W] of random contrast around a random grey, within a distance [n]."""
    contrast, grey = problem.uniform("look", (2, 1, 1, 1)).unbind(1)
    return at_distance(problem, (grey + contrast * draw).clamp(0, 1), distance)


@hookimpl
def bench_attacks() -> Iterator[Attack]:
    """Register the attack on the first hundred examples, and on all."""
    yield HopSkipJump()
    yield HopSkipJump("hopskipjump-all", examples=0)
