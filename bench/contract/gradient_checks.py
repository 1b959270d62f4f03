"""Checks of a defense's gradients and of its BPDA approximation."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contract.check import DoesNotApply, checks_of
from bench.contract.defense_fixture import (
    DefenseFixture,
    gradient_of_weighted,
    logit_weights,
    logits_of,
)

DIFFERENCE_STEP = 2.0**-10  # of a pixel: above float32 rounding, below most kinks


def a_gradient_exists(fixture: DefenseFixture) -> str:
    """Some input gradient is not zero, or a `bpda` is declared.

    Raises DoesNotApply for a defense with a `bpda` and for a built-in control.
    """
    if fixture.is_built_in and fixture.defense.control:
        raise DoesNotApply(f"declared a control: {fixture.defense.control}.")
    _exempt_with_bpda(fixture)
    module = fixture.build()
    gradient = gradient_of_weighted(module, fixture.x, logit_weights(logits_of(module, fixture.x)))
    if not torch.isfinite(gradient).all():
        return "input gradients are not finite; correct the gradient or declare a bpda."
    if gradient.any():
        return ""
    return "all input gradients are zero; declare a bpda, or its robustness is shown as suspect."


def gradient_is_the_slope(fixture: DefenseFixture) -> str:
    """Input gradients agree with finite differences, or a `bpda` is declared.

    Raises DoesNotApply for a defense with a `bpda`, and for a built-in control without a gradient.
    """
    _exempt_with_bpda(fixture)
    declared, seen = _slopes(fixture)
    if fixture.is_built_in and fixture.defense.control and not declared.any():
        raise DoesNotApply(f"declared a control: {fixture.defense.control}.")
    cosine = float(declared @ seen / (declared.norm() * seen.norm()).clamp_min(1e-300))
    if cosine >= 0.9 or not (declared.any() or seen.any()):
        return ""
    return (
        f"the cosine of gradients and finite differences is {cosine:.2f}; at least 0.9 was "
        "expected. Declare a bpda for the part that is not differentiable."
    )


def _slopes(fixture: DefenseFixture) -> tuple[Tensor, Tensor]:
    """Slopes [n] of weighted logits in a random direction, by gradient and by differences."""
    module = fixture.build()
    x = fixture.examples[0][: fixture.full_batch].clamp(DIFFERENCE_STEP, 1 - DIFFERENCE_STEP)
    weight = logit_weights(logits_of(module, x))
    generator = torch.Generator().manual_seed(3)
    v = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    declared = (gradient_of_weighted(module, x, weight) * v).flatten(1).sum(1).double()
    ahead, behind = (logits_of(module, x + h * v) for h in (DIFFERENCE_STEP, -DIFFERENCE_STEP))
    return declared, ((ahead - behind).double() * weight).sum(1) / (2 * DIFFERENCE_STEP)


def _exempt_with_bpda(fixture: DefenseFixture) -> None:
    """Raises DoesNotApply for a defense with a declared `bpda`."""
    if fixture.defense.bpda is not None:
        raise DoesNotApply("it declares a bpda.")


def bpda_answers_alike(fixture: DefenseFixture) -> str:
    """The `bpda` gives finite logits of the same shape, and gradients that are not zero.

    Raises DoesNotApply for a defense without a `bpda`.
    """
    loader = fixture.loader
    other = loader.bpda()
    if other is None:
        raise DoesNotApply("it declares no bpda.")
    own, other_logits = logits_of(loader.build(), fixture.x), logits_of(other, fixture.x)
    if other_logits.shape != own.shape:
        return f"the bpda's logits are {list(other_logits.shape)}, not {list(own.shape)}."
    gradient = gradient_of_weighted(other, fixture.x, logit_weights(own))
    if not (torch.isfinite(other_logits).all() and torch.isfinite(gradient).all()):
        return "the bpda gives NaN or infinite logits or gradients."
    return "" if gradient.any() else "all gradients of the bpda are zero, so it is of no use."


GRADIENT_CHECKS = checks_of(a_gradient_exists, gradient_is_the_slope, bpda_answers_alike)
