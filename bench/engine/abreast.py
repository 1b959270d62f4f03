"""The runs of a few items side by side: slots that would stay empty begin later runs early.

An item's verdict, image and price are those of playing its runs one after another: its earliest
run that wins counts, whatever a later one has done in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.engine.game import Attempts, Confirm, Game
from bench.engine.table import Table
from bench.plugin import Traits
from bench.problem import runs_of
from bench.records import Budget


def table(game: Game, confirm: Confirm, items: Sequence[int]) -> Iterator[Attempts]:
    """Play these items: their runs side by side where all of them fit, else one after another."""
    runs = runs_of(game.attack, game.clean.shape[1])
    if runs == 1 or not items or len(items) * runs > game.slots or not divisible(game):
        yield from Table(game, confirm, items).play()
        return
    lost = set(game.lost.nonzero()[:, 0].tolist())
    yield from Table(game, confirm, [item for item in items if item in lost]).play()
    yield from abreast(game, confirm, [item for item in items if item not in lost], runs)


def divisible(game: Game) -> bool:
    """Whether nothing is handed from one run of an item to its next: neither purse nor best."""
    alone = game.noise is None and game.budget == Budget() and game.goal.kind != "nearest"
    return alone and not Traits.of(game.attack).minimises


def abreast(game: Game, confirm: Confirm, items: Sequence[int], runs: int) -> Iterator[Attempts]:
    """Every run of every item as a row of its own."""
    if not items:
        return
    example = torch.tensor(items, device=game.x.device).repeat_interleave(runs)
    run = torch.arange(runs, device=game.x.device).repeat(len(items))
    wide = replace(
        game, x=game.x[example], y=game.y[example], aim=game.aim[example],
        clean=game.clean[example], lost=game.lost[example], example=example, run=run,
    )  # fmt: skip

    def upheld(rows: Tensor, images: Tensor) -> Tensor:
        return confirm(example[rows.to(example.device)], images)

    parts = list(Table(wide, upheld, range(len(example))).play())
    whole = Attempts(*(torch.cat(column) for column in zip(*parts, strict=True)))
    yield gathered(whole, items, runs)


def gathered(rows: Attempts, items: Sequence[int], runs: int) -> Attempts:
    """The rows of each item as its one attempt: the first that won, or the last."""
    place = torch.full((len(items) * runs,), -1)
    place[rows.item] = torch.arange(len(rows.item))
    place = place.view(-1, runs)
    won = (place >= 0) & (rows.step[place.clamp_min(0)] >= 0)
    first = torch.where(won.any(1), won.int().argmax(1), runs - 1)
    chosen = place.gather(1, first[:, None])[:, 0]
    spent = (torch.arange(runs) <= first[:, None]) & (place >= 0)
    return Attempts(
        item=torch.tensor(items),
        image=rows.image[chosen.to(rows.image.device)],
        forwards=(rows.forwards[place.clamp_min(0)] * spent).sum(1),
        gradients=(rows.gradients[place.clamp_min(0)] * spent).sum(1),
        looks=rows.looks[chosen], step=rows.step[chosen], run=rows.run[chosen],
    )  # fmt: skip
