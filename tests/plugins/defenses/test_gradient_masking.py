"""Deliberate gradient masking: unchanged predictions with a useless gradient."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bench.engine.model_access import ModelAccess
from bench.plugin import L2, Access, Defense, Finding, cross_entropy
from plugins.attacks.boundary import Boundary
from plugins.defenses.argmax_only import ArgmaxOnly
from plugins.defenses.gradient_masking import GRID, MaskedLogits, quantize_logits, scale_logits
from plugins.diagnostics.zero_gradients import ZeroGradients
from tests.fixtures.known_models import digits, gaussian, linear, run_and_judge

SURE = 40 * gaussian(10, 64)


@pytest.mark.row("D32")
def test_scaling_changes_no_prediction_and_removes_the_gradient_of_the_cross_entropy() -> None:
    x, _ = digits(64)
    model = linear(SURE)
    y = model(x).argmax(1)
    masked = MaskedLogits(model, scale_logits)
    assert torch.equal(masked(x).argmax(1), y)
    own, hidden = (
        ModelAccess(m).gradient(x, lambda logits: cross_entropy(logits, y)).gradient
        for m in (linear(SURE / 400), masked)
    )
    assert own.flatten(1).any(1).all()
    assert (hidden == 0).flatten(1).all(1).double().mean() > 0.9


@pytest.mark.row("D32")
def test_quantised_logits_are_rounded_and_have_no_gradient() -> None:
    logits = gaussian(64, 10)
    assert ((quantize_logits(logits) - logits).abs() <= GRID / 2 + 1e-6).all()
    assert torch.equal(quantize_logits(logits) / GRID, (quantize_logits(logits) / GRID).round())
    x, y = digits(32)
    found = ModelAccess(MaskedLogits(linear(SURE), quantize_logits)).gradient(
        x, lambda z: cross_entropy(z, y)
    )
    assert (found.gradient == 0).all()


@pytest.mark.row("D32")
@pytest.mark.parametrize("mask", [scale_logits, quantize_logits])
def test_diagnostics_flag_a_masked_model_and_not_the_network_behind_it(mask: object) -> None:
    x, _ = digits(32)
    model = linear(SURE)
    y = model(x).argmax(1)
    record = Defense("masked", build=lambda loader: model)
    examine = ZeroGradients().examine
    masked = MaskedLogits(model, mask)  # type: ignore[arg-type]
    assert examine(masked, x, y, record).finding is Finding.WARNING
    assert examine(linear(SURE / 400), x, y, record).finding is Finding.PASSED


@pytest.mark.row("D33")
def test_a_label_only_attack_breaks_argmax_only_exactly_as_the_network() -> None:
    x, _ = digits(32)
    model = linear(gaussian(10, 64))
    y = model(x).argmax(1)
    attack, ball = Boundary(steps=50), L2(Fraction(1, 2))
    open_, hidden = (
        run_and_judge(attack, m, x, y, ball, access=Access.LABELS)
        for m in (model, ArgmaxOnly(model))
    )
    assert torch.equal(open_.image, hidden.image)
    assert torch.equal(open_.broken, hidden.broken)
    assert int(open_.broken.sum()) > 0
