"""Tests of bench.engine.query_cache: no image is queried twice, and answers are unchanged."""

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
    """Returns sums of pixels and records the queried images."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        flat = images.flatten(1)
        return torch.stack([flat.sum(1), flat.amax(1), flat[:, 0]], 1)

    @property
    def queried(self) -> Tensor:
        return torch.cat(self.batches)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def recorded_cache(max_batch: int = 256) -> tuple[Recorder, QueryCache]:
    model = Recorder()
    return model, QueryCache(ModelAccess(model).logits, max_batch)


def test_each_image_is_queried_once_and_each_row_gets_its_own_answer() -> None:
    model, cache = recorded_cache()
    known, new = pictures(32), pictures(32, seed=1)
    first = cache(torch.cat([known, known.flip(0)]))
    again = cache(torch.cat([new, known]))
    for images, answers in (
        (torch.cat([known, known.flip(0)]), first),
        (torch.cat([new, known]), again),
    ):
        assert torch.equal(answers, Recorder()(images))
    assert [len(batch) for batch in model.batches] == [32, 32]
    assert len(torch.unique(model.queried, dim=0)) == 64


def test_cached_images_cause_no_model_call() -> None:
    model, cache = recorded_cache()
    images = pictures(40)
    once, twice = cache(images), cache(images[[3, 3, 39]])
    assert torch.equal(twice, once[[3, 3, 39]])
    assert len(model.batches) == 1


@pytest.mark.parametrize(
    ("count", "max_batch", "sizes"),
    [
        (32, 32, [32]),
        (40, 32, [64]),
        (96, 32, [32] * 3),
        (224, 128, [128, 96]),
        (400, 128, [160, 160, 96]),
    ],
)
def test_calls_have_whole_units_of_about_the_requested_size(
    count: int, max_batch: int, sizes: list[int]
) -> None:
    model, cache = recorded_cache(max_batch)
    images = pictures(count)
    assert torch.equal(cache(images), Recorder()(images))
    assert [len(batch) for batch in model.batches] == sizes


def test_an_overwritten_entry_is_queried_again_and_never_mixed_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_cache, "ENTRIES", 16)
    model, cache = recorded_cache()
    one, two = pictures(32), pictures(32, seed=1)
    for images in (one, two, one, one):
        assert torch.equal(cache(images), Recorder()(images))
    assert len(model.batches) == 4, (
        "at max_batch 16 of 32 have an entry, so the others are queried again"
    )
    for image in torch.split(torch.cat([one, two]), 1):
        assert torch.equal(cache(image), Recorder()(image))
    cache(two[31:])
    before = len(model.batches)
    cache(two[31:])
    assert len(model.batches) == before, "the latest answer is cached"


def test_an_empty_entry_matches_no_image() -> None:
    """The fingerprint of a black image is zero, as are the initial contents of a cache."""
    model, cache = recorded_cache()
    black = torch.zeros(1, 2, 3, 3)
    assert int(fingerprints(black)) == 0
    cache(pictures(32))
    assert torch.equal(cache(black), Recorder()(black))
    assert len(model.batches) == 2


def test_a_fingerprint_depends_on_every_bit_and_its_position() -> None:
    one = pictures(1)
    alike = [one, one.clone(), one.to(memory_format=torch.channels_last)]
    assert len({int(fingerprints(image)) for image in alike}) == 1
    bits = one.view(torch.int32)
    flips = [(bits ^ (1 << bit)).view(torch.float32) for bit in range(31)]
    turned = [one.flip(3), one.flip(1), one.transpose(2, 3).contiguous()]
    assert len({int(fingerprints(image)) for image in [one, *flips, *turned]}) == 35


def test_fingerprints_of_all_binary_images_differ() -> None:
    """Pixels of 0 and 1, whose bits end in 23 zeros, are common at the edge of the box."""
    count = 2**16
    number = torch.arange(count)[:, None] >> torch.arange(16) & 1
    images = number.float().view(count, 1, 4, 4)
    assert len(torch.unique(fingerprints(images))) == count
    # By chance a pair of them would agree in 40 bits once in five hundred such trials.
    assert len(torch.unique(fingerprints(images) & (2**40 - 1))) == count


def test_fingerprints_do_not_depend_on_the_batch() -> None:
    images = torch.rand(20, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([fingerprints(image[None]) for image in images])
    assert torch.equal(fingerprints(images), alone)


def test_a_search_over_small_images_is_charged_for_cached_queries() -> None:
    model = small_cnn()
    single = SingleRun(Square(steps=1000), Linf(Fraction(1, 20)), model=model, count=20)
    evaluated = 0

    def count_rows(module: nn.Module, args: tuple[Tensor], answer: Tensor) -> None:
        nonlocal evaluated
        evaluated += len(args[0])

    handle = model.register_forward_hook(count_rows)
    outcomes = single.run(128).outcomes
    handle.remove()
    survived = outcomes.verdict == Verdict.ROBUST
    assert survived.sum() > 5
    assert (outcomes.forwards[survived] == 1000).all(), "its queries are those of the paper"
    assert evaluated < 0.5 * int(outcomes.forwards.sum())
