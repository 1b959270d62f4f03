"""Cascade training in its paper's setting: a CNN on MNIST in a wide ball, where FGSM training
fails.

On the 8 x 8 digits there is no gain (test_protocol_dg). As in the paper, the ball is .3 and the
iterated steps have smaller radii than the trained one.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from bench.core.errors import UnavailableError
from bench.plugin import InnerAttack, Linf, Recipe
from bench.registry.registry import Registry
from plugins.defenses.cascade_training import ALPHA, PIVOT, cascade_loss
from plugins.defenses.fgsm_training import mixture_loss
from tests.fixtures.images import first_of
from tests.fixtures.protocol_dg import DigitsTestbed, fgsm, pgd

pytestmark = pytest.mark.slow

WIDE = Fraction(3, 10)


def strided(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Two convolutions that halve the image, and 128 hidden units as the embedding."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> DigitsTestbed:
    registry = Registry.load(Path("no-such-folder"))
    try:
        some = first_of(registry.datasets["mnist"].value, 1500)
    except UnavailableError as error:
        pytest.skip(str(error))
    return DigitsTestbed(tmp_path_factory.mktemp("mnist"), some)


@pytest.mark.row("D19")
def test_the_cascade_is_more_robust_to_iterated_steps_and_less_to_one_step(
    mnist: DigitsTestbed,
) -> None:
    learn = partial(Recipe, strided, inner=fgsm(WIDE), epochs=20, rate=5e-4, schedule="cosine")
    both = partial(cascade_loss, alpha=ALPHA, pivot=PIVOT)
    mixture = mnist.train("mixture", learn(loss=partial(mixture_loss, alpha=ALPHA)))
    mnist.train("first", learn(loss=both))
    stored = InnerAttack("bim", Linf(WIDE))
    cascade = mnist.train("cascade", learn(loss=both, teacher="first", transfer=stored))
    assert abs(mnist.clean(cascade) - mnist.clean(mixture)) < 0.05
    assert mnist.robust(cascade, fgsm(WIDE)) < mnist.robust(mixture, fgsm(WIDE)) - 0.1
    for share, gain in ((1, 0.15), (2, 0.2), (3, 0.1)):
        steps = pgd(100, share * WIDE / 4)
        assert mnist.robust(cascade, steps) > mnist.robust(mixture, steps) + gain
