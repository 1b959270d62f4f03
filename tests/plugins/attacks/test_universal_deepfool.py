"""DeepFool steps that are added up over images."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bench.threats.delta import L2Delta, LinfDelta
from bench.threats.parametric import ParametricSet
from plugins.attacks.universal_deepfool import UniversalDeepFool, nearest_step
from tests.fixtures.known_models import digits, linear, small_cnn
from tests.fixtures.shared_run import run_shared, training_images

SETS = [LinfDelta(eps=Fraction(1, 5)), L2Delta(eps=Fraction(2))]


@pytest.mark.row("A12")
@pytest.mark.parametrize("ball", SETS, ids=lambda ball: ball.name)
def test_a_step_ends_on_the_nearest_boundary_of_a_linear_model(ball: ParametricSet) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    model, x = linear(weight), digits(1)[0]
    logits = model(x)[0]
    own = int(logits.argmax())
    rivals = [k for k in range(3) if k != own]
    slopes = torch.stack([(weight[k] - weight[own]).view(1, 8, 8) for k in rivals])
    gaps = torch.stack([logits[own] - logits[k] for k in rivals])
    training, _ = training_images(UniversalDeepFool(), ball, model, digits(4))
    step = nearest_step(training, slopes, gaps)  # type: ignore[arg-type]
    after = model(x + step)[0]
    assert float((after[own] - after[rivals].max()).abs()) < 1e-3
    norms = {"linf-delta": 1, "l2-delta": 2}
    dual = torch.linalg.vector_norm(slopes.flatten(1), norms[ball.name], dim=1)
    length = float(ball.distance(step, x))
    assert length == pytest.approx(float((gaps / dual).min()), abs=1e-4)


def test_it_ends_as_soon_as_the_share_is_fooled_and_keeps_the_best() -> None:
    x, y = digits(600)
    train, test = (x[:200], y[:200]), (x[200:], y[200:])
    wide = LinfDelta(eps=Fraction(1, 2))
    one = run_shared(UniversalDeepFool(passes=1, images=100), wide, small_cnn(), train, test)
    more = run_shared(UniversalDeepFool(passes=5, images=100), wide, small_cnn(), train, test)
    assert one.changed > 0.5
    assert more.gradients >= one.gradients
    none = run_shared(UniversalDeepFool(fooled=0.0, images=100), wide, small_cnn(), train, test)
    assert none.gradients == one.gradients and torch.equal(none.point, one.point)
