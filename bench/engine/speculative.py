"""Questions asked ahead: what changes nothing makes a row's next question known.

A random search keeps its image until a proposal is better, and its draws are keyed by the step. So
every question of a row up to the next that is accepted is known at once. They are asked in one
batch, those that were answered before are not asked again; the row goes on behind the first that
changed it or reached the goal, and pays for as many as it would have asked one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.core.errors import PluginError
from bench.engine.cell_spec import CellSpec
from bench.engine.model_access import ModelAccess
from bench.engine.problem import BATCH_UNIT, BatchProblem, map_state
from bench.engine.query_cache import QueryCache
from bench.plugin import State, StopRule, Traits
from bench.threats.access import Budget

FAR = 16  # full batches in a wide one at most: an attack's own arithmetic is cheaper in large ones
PIXELS = 2**23  # of one wide batch at most, where that is more than a full batch has
CARE = 0.25  # of the questions expected before a row's next change: those behind it are in vain
GAIN = 1.25  # questions for each row at least: for fewer a plain step is cheaper
MEMORY = 0.9  # weight of the past in the running share of questions that change their row
UnchangedRule = Callable[[State, State], Tensor]
"""(state before a step, state after it) -> [n] bool: the step has changed nothing."""


class SpeculativeStep(NamedTuple):
    """Where one wide batch has brought its rows."""

    made: Tensor
    """[m] int64: how many of its questions each row has made."""
    won: Tensor
    """[m] bool: the last of them reached the goal."""
    adv: Tensor
    """[m, C, H, W]: that question."""
    answer: Tensor
    """[m, K]: and what was answered."""
    state: State
    """Of all rows, those behind it."""


class SpeculativeBatch(NamedTuple):
    """A batch in which rows stand several times, once for each question: [p] places."""

    rows: BatchProblem
    where: Tensor
    """[m]: the slots that it repeats, one after another, again and again."""
    who: Tensor
    """[p]: which slot each place repeats."""
    row: Tensor
    """[p]: and which of the m."""
    ahead: Tensor
    """[p]: how many questions after the next."""
    last: Tensor
    """[m]: of the last place of each."""
    offers: list[tuple[Tensor, Tensor]]
    """What was asked, and the answers."""

    @classmethod
    def of(
        cls, rows: BatchProblem, door: ModelAccess, where: Tensor, places: int
    ) -> SpeculativeBatch:
        """`where` [m] in `places`."""
        place = torch.arange(places, device=where.device)
        row, ahead = place % len(where), place // len(where)
        offers = list[tuple[Tensor, Tensor]]()
        wide = rows.select(where[row], door)
        wide.on_query = lambda adv, answer, _: offers.append((adv, answer))
        last = (places - 1 - place[: len(where)]) // len(where)
        return cls(wide, where, where[row], row, ahead, last, offers)


class SpeculativeQueries:
    """Decides how far ahead rows ask, and asks."""

    def __init__(self, game: CellSpec) -> None:
        self.attack, self.slots, self.stays = game.attack, game.slots, unchanged_rule(game)
        self.door = QueryCache.wrap(game.model_access, game.slots)
        self.most = max(game.slots, min(FAR * game.slots, PIXELS // game.x[0].numel()))
        """Places of one wide batch."""
        self.wide: SpeculativeBatch | None = None
        self.moving = 1.0
        """The share of late steps that have changed their row."""

    def places(self, playing: int, size: int) -> int:
        """Rows of a wide batch for so many that play in a table of `size`; 0: a step will do."""
        if self.stays is None or not playing:
            return 0
        known = playing / self.moving
        wanted = max(min(self.slots, known), min(self.most, CARE * known))
        places = max(size, int(wanted) // BATCH_UNIT * BATCH_UNIT)
        return places if places >= GAIN * playing else 0

    def learn(self, before: State, after: State, playing: Tensor) -> None:
        """How many of the rows `playing` [n] bool a step has changed."""
        if self.stays is not None:
            moved = playing & ~self.stays(before, after)
            self._heard(int(moved.sum()), int(playing.sum()))

    def _heard(self, moved: int, made: int) -> None:
        share = MEMORY * self.moving + (1 - MEMORY) * moved / max(made, 1)
        self.moving = max(share, 1 / (FAR * self.slots))

    def leap(self, rows: BatchProblem, state: State, where: Tensor, places: int) -> SpeculativeStep:
        """Ask the next questions of the rows `where` [m], `places` in all."""
        if self.stays is None:
            raise PluginError(f"{self.attack.name} does not say which rows a step leaves alone.")
        wide = self._spread(rows, where, places)
        left = self.attack.steps - 1 - rows.t[where]
        wide.rows.t = (rows.t[wide.who] + wide.ahead).clamp_max(self.attack.steps - 1)
        before = map_state(lambda field: field[wide.who], state)
        wide.offers.clear()
        after = self.attack.step(wide.rows, before)
        adv, answer = self._only(wide.offers)
        moved, won = ~self.stays(before, after), wide.rows.wrong(answer)
        stop = torch.where(moved | won, wide.ahead, places)
        last = torch.minimum(wide.last, left).scatter_reduce(0, wide.row, stop, "amin")
        end = last * len(where) + wide.row[: len(where)]
        self._heard(int(moved[end].sum()), int(last.sum()) + len(where))

        def settled(all_rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
            return all_rows if new is old else all_rows.index_copy(0, where, new[end])

        state = map_state(settled, state, before, after)
        return SpeculativeStep(last + 1, won[end], adv[end], answer[end], state)

    def forget(self) -> None:
        """Other rows sit in the slots."""
        self.wide = None

    def _spread(self, rows: BatchProblem, where: Tensor, places: int) -> SpeculativeBatch:
        old = self.wide
        if old is None or len(old.row) != places or not torch.equal(old.where, where):
            self.wide = old = SpeculativeBatch.of(rows, self.door, where, places)
        return old

    def _only(self, offers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if len(offers) != 1:
            raise PluginError(
                f"{self.attack.name} asked {len(offers)} questions in a step; "
                "an attack that declares stays asks one."
            )
        return offers[0]


def unchanged_rule(game: CellSpec) -> UnchangedRule | None:
    """The attack's word on which rows a step has left alone; None where it may not be used.

    A budget may end between two questions, a random defense must not be asked more often
    than it was, and only a first success ends a row at once.
    """
    attack: Any = game.attack
    stays: UnchangedRule | None = getattr(attack, "stays", None)
    traits = Traits.of(attack)
    plain = game.noise is None and game.model_access.draws == 1 and game.budget == Budget()
    ends = traits.stop_rule is StopRule.FIRST_SUCCESS and not traits.minimises
    return stays if plain and ends and game.goal.kind != "nearest" else None
