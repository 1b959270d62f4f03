"""One pixel by differential evolution, against the exhaustive search."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bench.core.outcomes import Verdict
from bench.threats.sparse import L0
from plugins.attacks.one_pixel import OnePixel
from plugins.attacks.one_pixel_evolution import OnePixelEvolution, one_pixel_images
from plugins.attacks.random_noise import RandomNoise
from tests.engine.single_run import RunResult, SingleRun, assert_same
from tests.fixtures.known_models import digits, run_and_judge, small_cnn
from tests.fixtures.protocol_dg import DigitsTestbed, recipe, testbed
from tests.threats.test_parametric import random_images

__all__ = ["testbed"]

BALL = L0(Fraction(1))
COUNT = 100
SMALL = OnePixelEvolution(population=20, generations=9)


def broken(found: RunResult) -> int:
    """Broken examples."""
    return int((found.outcomes.verdict == Verdict.BROKEN).sum())


def test_genes_set_one_pixel_to_a_colour() -> None:
    x = random_images((3, 5, 4), 3)
    genes = torch.tensor([[0.0, 0.0, 0, 0.5, 1], [1.0, 1.0, 1, 1, 1], [0.5, 0.3, 0.2, 0.2, 0.2]])
    image = one_pixel_images(x, genes)
    changed = (image != x).any(1)
    assert [changed[k].nonzero().tolist() for k in range(3)] == [[[0, 0]], [[4, 3]], [[2, 1]]]
    assert image[0, :, 0, 0].tolist() == [0.0, 0.5, 1.0]
    assert torch.equal(one_pixel_images(x, genes, changes=False), x)


@pytest.mark.row("P09")
def test_it_comes_near_the_exhaustive_search_and_beats_random_pixels() -> None:
    model = small_cnn()
    x, y = digits(COUNT)
    right = model(x).argmax(1) == y
    found = SingleRun(SMALL, BALL, model=model, count=COUNT).run()
    whole = broken(SingleRun(OnePixel(), BALL, model=model, count=COUNT).run())
    random = broken(SingleRun(RandomNoise(draws=20), BALL, model=model, count=COUNT).run())
    assert random <= broken(found) <= whole and broken(found) >= 0.7 * whole
    wrong = torch.from_numpy(found.outcomes.verdict == Verdict.BROKEN)
    assert ((found.images != x).flatten(1).sum(1)[wrong & right] == 1).all()


@pytest.mark.row("P09")
def test_one_pixel_breaks_about_a_third_of_the_testbed(testbed: DigitsTestbed) -> None:
    """Black and white at each of 64 places: 34.5 % in the reference run of the testbed."""
    model = testbed.train("standard", recipe())
    found = run_and_judge(OnePixel(), model, testbed.x, testbed.y, BALL)
    share = float(found.broken.double().mean())
    assert 0.25 < share < 0.45
    right = model(testbed.x).argmax(1) == testbed.y
    changed = (found.image != testbed.x).flatten(1).sum(1)
    assert (changed[found.broken & right] == 1).all()


def test_a_row_evolves_alike_in_any_batch() -> None:
    small = OnePixelEvolution(population=5, generations=4)
    run = SingleRun(small, BALL, model=small_cnn(), count=80)
    assert_same(run.run(slots=64), run.run(slots=32))
