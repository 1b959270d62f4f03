"""The runs of a few items side by side: slots that would stay empty begin later runs early.

An item's verdict, image and price are those of playing its runs one after another: its earliest
run that wins counts, whatever a later one has done in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bench.engine.cell_spec import Candidates, CellSpec, Confirm, concatenate
from bench.engine.problem import checked_restart_count
from bench.engine.scheduler import Scheduler
from bench.threats.access import Budget

PIXELS = 2**26  # in all rows: so many are laid out at once


def run_items(game: CellSpec, confirm: Confirm, items: Sequence[int]) -> Iterator[Candidates]:
    """Play these items: their runs side by side where they leave slots empty, else in turn."""
    runs = checked_restart_count(game.attack, game.clean_logits.shape[1])
    size = len(items) * runs * game.x[:1].numel()
    if (
        runs == 1
        or not items
        or len(items) >= game.slots
        or size > PIXELS
        or not restarts_are_independent(game)
    ):
        yield from Scheduler(game, confirm, items).play()
        return
    lost = set(game.reached_on_clean.nonzero()[:, 0].tolist())
    yield from Scheduler(game, confirm, [item for item in items if item in lost]).play()
    yield from run_restarts_in_parallel(
        game, confirm, [item for item in items if item not in lost], runs
    )


def restarts_are_independent(game: CellSpec) -> bool:
    """Whether nothing but the nearest success is handed from one run of an item to its next."""
    return game.noise is None and game.budget == Budget() and game.goal.kind != "nearest"


def run_restarts_in_parallel(
    game: CellSpec, confirm: Confirm, items: Sequence[int], runs: int
) -> Iterator[Candidates]:
    """Every run of every item as a row of its own; all first runs begin before any second."""
    if not items:
        return
    example = torch.tensor(items, device=game.x.device).repeat_interleave(runs)
    run = torch.arange(runs, device=game.x.device).repeat(len(items))
    wide = replace(
        game, x=game.x[example], y=game.y[example], target=game.target[example],
        clean_logits=game.clean_logits[example], reached_on_clean=game.reached_on_clean[example], example=example, restart=run,
    )  # fmt: skip

    def upheld(rows: Tensor, images: Tensor) -> Tensor:
        return confirm(example[rows.to(example.device)], images)

    order = run.argsort(stable=True).tolist()
    race, known = Scheduler(wide, upheld, order), RestartResults.nothing(wide, len(items), runs)
    for part in race.play():
        known = known.joined(part)
        yield from known.due(items)


class RestartResults(NamedTuple):
    """What is known of the runs of some items: [items, runs] each, and the attempts."""

    place: Tensor
    """Where the attempt of each run stands in `rows`; -1 before it is there."""
    handed: Tensor
    """[items] bool: handed on already."""
    rows: Candidates
    """One entry for each run that is over."""

    @classmethod
    def nothing(cls, wide: CellSpec, items: int, runs: int) -> RestartResults:
        """Before the first run is over."""
        place = torch.full((items, runs), -1)
        return cls(
            place, torch.zeros(items, dtype=torch.bool), Candidates.of_clean_images(wide, [])
        )

    def joined(self, part: Candidates) -> RestartResults:
        """With these runs, too."""
        rows = concatenate([self.rows, part])
        place = self.place.clone()
        place.view(-1)[rows.item] = torch.arange(len(rows.item))
        return self._replace(place=place, rows=rows)

    def due(self, items: Sequence[int]) -> Iterator[Candidates]:
        """The items whose first winner, or last run, is known with all runs before it."""
        runs = self.place.shape[1]
        there = self.place >= 0
        won = there & (self.rows.step[self.place.clamp_min(0)] >= 0)
        last = torch.where(won.any(1), won.int().argmax(1), runs - 1)
        counted = torch.arange(runs) <= last[:, None]
        ready = (there | ~counted).all(1) & ~self.handed
        if ready.any():
            self.handed.logical_or_(ready)
            chosen = ready.nonzero()[:, 0]
            yield self._gathered(items, chosen, last[chosen], counted[chosen], won[chosen].any(1))

    def _gathered(
        self, items: Sequence[int], chosen: Tensor, last: Tensor, counted: Tensor, won: Tensor
    ) -> Candidates:
        """These items as one attempt each: the first run that won, or all of them."""
        rows, place = self.rows, self.place[chosen].clamp_min(0)
        end = place.gather(1, last[:, None])[:, 0]
        far = rows.distance[place].masked_fill(~counted, torch.inf)
        nearest = place.gather(1, far.argmin(1, keepdim=True))[:, 0]
        shown = torch.where(won | far.isinf().all(1), end, nearest)
        return Candidates(
            item=torch.tensor(items)[chosen],
            image=rows.image[shown.to(rows.image.device)],
            forwards=(rows.forwards[place] * counted).sum(1),
            gradients=(rows.gradients[place] * counted).sum(1),
            final_checks=rows.final_checks[end], step=rows.step[end], restart=rows.restart[end],
            distance=rows.distance[shown],
        )  # fmt: skip
