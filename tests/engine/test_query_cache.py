"""Answers by image: nothing is asked twice, and every answer is the one that asking would give."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.core.outcomes import Verdict
from bench.engine import query_cache
from bench.engine.model_access import ModelAccess
from bench.engine.query_cache import QueryCache, fingerprints
from bench.threats.norms import Linf
from plugins.attacks.square import Square
from tests.engine.single_run import SingleRun
from tests.fixtures.known_models import small_cnn


class Recorder(nn.Module):
    """Answers with sums of pixels and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        flat = images.flatten(1)
        return torch.stack([flat.sum(1), flat.amax(1), flat[:, 0]], 1)

    @property
    def asked(self) -> Tensor:
        return torch.cat(self.batches)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def opened(most: int = 256) -> tuple[Recorder, QueryCache]:
    model = Recorder()
    return model, QueryCache(ModelAccess(model).logits, most)


def test_each_image_is_asked_once_and_every_row_gets_its_own_answer() -> None:
    model, door = opened()
    known, new = pictures(32), pictures(32, seed=1)
    first = door(torch.cat([known, known.flip(0)]))
    again = door(torch.cat([new, known]))
    for images, said in (
        (torch.cat([known, known.flip(0)]), first),
        (torch.cat([new, known]), again),
    ):
        assert torch.equal(said, Recorder()(images))
    assert [len(batch) for batch in model.batches] == [32, 32]
    assert len(torch.unique(model.asked, dim=0)) == 64


def test_what_is_all_known_makes_no_call() -> None:
    model, door = opened()
    images = pictures(40)
    once, twice = door(images), door(images[[3, 3, 39]])
    assert torch.equal(twice, once[[3, 3, 39]])
    assert len(model.batches) == 1


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (32, 32, [32]),
        (40, 32, [64]),
        (96, 32, [32] * 3),
        (224, 128, [128, 96]),
        (400, 128, [160, 160, 96]),
    ],
)
def test_calls_are_of_whole_units_and_nearly_as_long_as_wished(
    count: int, most: int, sizes: list[int]
) -> None:
    model, door = opened(most)
    images = pictures(count)
    assert torch.equal(door(images), Recorder()(images))
    assert [len(batch) for batch in model.batches] == sizes


def test_what_lost_its_seat_is_asked_again_and_nobody_gets_anothers_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_cache, "ENTRIES", 16)
    model, door = opened()
    one, two = pictures(32), pictures(32, seed=1)
    for images in (one, two, one, one):
        assert torch.equal(door(images), Recorder()(images))
    assert len(model.batches) == 4, "of 32 at most 16 find a seat, so the others are asked again"
    for image in torch.split(torch.cat([one, two]), 1):
        assert torch.equal(door(image), Recorder()(image))
    door(two[31:])
    before = len(model.batches)
    door(two[31:])
    assert len(model.batches) == before, "the last that was told something is remembered"


def test_an_empty_seat_answers_nobody() -> None:
    """The fingerprint of a black image is zero, and so are the next ones' of other seats."""
    model, door = opened()
    black = torch.zeros(1, 2, 3, 3)
    assert int(fingerprints(black)) == 0
    door(pictures(32))
    assert torch.equal(door(black), Recorder()(black))
    assert len(model.batches) == 2


def test_a_fingerprint_is_of_every_bit_and_of_its_place() -> None:
    one = pictures(1)
    alike = [one, one.clone(), one.to(memory_format=torch.channels_last)]
    assert len({int(fingerprints(image)) for image in alike}) == 1
    bits = one.view(torch.int32)
    flips = [(bits ^ (1 << bit)).view(torch.float32) for bit in range(31)]
    turned = [one.flip(3), one.flip(1), one.transpose(2, 3).contiguous()]
    assert len({int(fingerprints(image)) for image in [one, *flips, *turned]}) == 35


def test_no_two_of_many_images_of_two_colours_share_a_fingerprint() -> None:
    """Zeros and ones, whose bits end in 23 zeros: what a square at the edge of the box leaves."""
    count = 2**16
    number = torch.arange(count)[:, None] >> torch.arange(16) & 1
    images = number.float().view(count, 1, 4, 4)
    assert len(torch.unique(fingerprints(images))) == count
    # By chance a pair of them would agree in 40 bits once in five hundred such trials.
    assert len(torch.unique(fingerprints(images) & (2**40 - 1))) == count


def test_long_images_get_the_same_fingerprint_in_any_company() -> None:
    images = torch.rand(20, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([fingerprints(image[None]) for image in images])
    assert torch.equal(fingerprints(images), alone)


def test_a_search_over_small_images_pays_for_more_questions_than_the_model_hears() -> None:
    model = small_cnn()
    match = SingleRun(Square(steps=1000), Linf(Fraction(1, 20)), model=model, count=20)
    heard = 0

    def listen(module: nn.Module, args: tuple[Tensor], answer: Tensor) -> None:
        nonlocal heard
        heard += len(args[0])

    handle = model.register_forward_hook(listen)
    outcomes = match.run(128).outcomes
    handle.remove()
    survived = outcomes.verdict == Verdict.ROBUST
    assert survived.sum() > 5
    assert (outcomes.forwards[survived] == 1000).all(), "its queries are those of the paper"
    assert heard < 0.5 * int(outcomes.forwards.sum())
