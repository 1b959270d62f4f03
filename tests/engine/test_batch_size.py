"""Who plays in which batch: the tail in smaller ones, where they give the same bits."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from bench.engine.problem import BATCH_UNIT
from bench.engine.runner import run_attack
from bench.threats.norms import Linf
from bench.threats.threat_model import Goal
from plugins.attacks.pgd import PGD
from plugins.attacks.pgd_margin import MarginPGD
from tests.engine.single_run import CountingModel, NoisyModel, SingleRun, assert_same


class Chunky(CountingModel):
    """Another last bit for batches under a unit."""

    def forward(self, images: Tensor) -> Tensor:
        few = len(images) < BATCH_UNIT
        return super().forward(images) * (1 + 2**-20 if few else 1)


def test_the_tail_plays_in_smaller_batches() -> None:
    match = SingleRun(PGD(steps=40), model=CountingModel())
    game = match.spec(128)
    module = game.model_access.module
    assert isinstance(module, CountingModel)
    asked, spent = list[int](), 0
    for _ in range(2):
        module.rows.clear()
        spent = sum(
            int(part.gradients.sum()) for part in run_attack(game, match.referee(game).confirm)
        )
        assert min(module.rows) < BATCH_UNIT
        asked.append(sum(module.rows))
    assert asked[0] < 1.6 * spent
    assert asked[1] < 1.4 * spent  # which batches are as good is known by then


def test_where_few_rows_get_other_bits_they_play_in_whole_units() -> None:
    match = SingleRun(PGD(steps=40), model=Chunky())
    game = match.spec(128)
    module = game.model_access.module
    assert isinstance(module, Chunky)
    module.rows.clear()
    list(run_attack(game, match.referee(game).confirm))
    asked = [rows for rows in module.rows if rows < BATCH_UNIT]
    assert 0 < len(asked) <= 2  # the self-test itself, for 8 and for 16 rows
    assert_same(match.run(128), match.run(32))


def test_the_firmest_answers_begin_first() -> None:
    game = SingleRun(PGD()).spec()
    gap = game.clean_logits.gather(1, game.y[:, None])[:, 0] - game.clean_logits.scatter(
        1, game.y[:, None], -torch.inf
    ).amax(1)
    assert gap[torch.tensor(game.largest_margin_first())].diff().le(0).all()
    targeted = SingleRun(PGD(), goal=Goal("targeted", "next")).spec()
    reached = targeted.clean_logits.argmax(1) == targeted.target
    assert not reached[torch.tensor(targeted.largest_margin_first())[: int((~reached).sum())]].any()


def test_a_random_group_gives_up_the_slots_of_those_who_fell() -> None:
    ball = Linf(Fraction(1, 8))
    match = SingleRun(
        MarginPGD(steps=20), ball, model=NoisyModel(0.02), random=True, count=BATCH_UNIT * 2
    )
    game, sizes = match.spec(), list[int]()
    game.model_access.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    (part,) = run_attack(game, match.referee(game).confirm)
    left = int((part.step < 0).sum())
    assert 0 < left < BATCH_UNIT and sizes[0] == BATCH_UNIT * 2
    assert min(sizes) == -(-left // 8) * 8
    assert sum(sizes) < 0.7 * len(sizes) * BATCH_UNIT * 2


def test_whoever_holds_a_lease_hears_of_it_before_anything_is_handed_on() -> None:
    ball = Linf(Fraction(1, 10))
    match = SingleRun(PGD(steps=40), ball, model=NoisyModel(0.02), random=True, count=BATCH_UNIT)
    beats = [0]
    game = replace(match.spec(), heartbeat=lambda: beats.__setitem__(0, beats[0] + 1))
    first = next(run_attack(game, match.referee(game).confirm))
    assert len(first.item) == BATCH_UNIT and beats[0] >= 40, (
        "a step of a large network may take as long as a lease"
    )
