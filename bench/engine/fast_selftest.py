"""Chooses the fastest form of a defense that passes its self-tests.

Successes found on a faster form are confirmed on the unmodified defense. So a wrong form can waste
time and miss successes, but cannot invent one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.cells import Numeric
from bench.core.errors import PLUGIN_EXCEPTIONS, UnavailableError
from bench.engine.fast_forms import (
    ChannelsLast,
    CudaGraphModel,
    block_first_gradient,
    fold_batchnorm,
    relu_in_place,
    to_bfloat16,
)
from bench.engine.model_access import input_gradient

CLOSE = 1e-4  # of the spread of the logits: the error of another order of summation
NEAR = 0.05  # of the spread: the error of bfloat16
STEADY = 1e-3  # of the spread: how far other images in the batch may move an answer by rounding
BFLOAT16 = "bfloat16"
MIN_GAIN_SHARE = 0.98  # of the first-order gain of a sign step, in the mean over the images
BACKWARDS = -0.5  # of that gain; where two classes tie, another gradient keeps about 0 of it


class FastModel(NamedTuple):
    """The module that attacks query instead of the defense."""

    module: nn.Module
    applied: tuple[str, ...]
    """The names of the applied forms, in order; empty: the defense as it was built."""
    notes: tuple[str, ...]
    """Why other forms were not applied, one sentence each."""

    @property
    def low_precision(self) -> bool:
        """Whether the module computes in bfloat16, so that unbroken examples must be audited."""
        return BFLOAT16 in self.applied


@dataclass(frozen=True)
class FastForm:
    """One faster form of a module."""

    name: str
    apply: Callable[[nn.Module], nn.Module]
    """Returns the faster module; leaves its input unchanged."""
    tolerance: float
    """How far a logit may move, as a share of the spread of the logits."""


def fastest_form(module: nn.Module, images: Tensor, numeric: Numeric) -> FastModel:
    """The fastest form of a frozen module that passes the self-test of each option.

    Args:
        module: in eval mode, without parameter gradients; left unchanged.
        images: [n, C, H, W], the inputs of the self-tests; 32 or more.
        numeric: the arithmetic that is allowed.
    """
    if numeric is Numeric.FLOAT32:
        return FastModel(module, (), ())
    reason = reason_for_plain_form(module, images)
    if reason:
        return FastModel(module, (), (f"plain float32: {reason}.",))
    expected = probe_answers(module, images)
    applied, notes = [], []
    for option in fast_forms(numeric, images.device):
        try:
            candidate = option.apply(module)
            answers = probe_answers(candidate, images, expected.pair)
            expected.check_close(answers, option.tolerance)
        except PLUGIN_EXCEPTIONS as error:
            # A submitted module may raise anything when it is traced or converted.
            unavailable = isinstance(error, UnavailableError)
            reason = str(error) if unavailable else type(error).__name__
            notes.append(f"without {option.name}: {reason}.")
        else:
            module = candidate
            applied.append(option.name)
    return FastModel(module, tuple(applied), tuple(notes))


def fast_forms(numeric: Numeric, device: torch.device) -> list[FastForm]:
    """The forms in the order in which they are tried, each on top of those that passed."""
    chosen = [FastForm("folded BatchNorm", fold_batchnorm, CLOSE)]
    if device.type == "cpu":
        chosen.append(FastForm("blocked gradient", block_first_gradient, CLOSE))
    chosen.append(FastForm("ReLU in place", relu_in_place, CLOSE))
    chosen.append(FastForm("channels last", ChannelsLast, CLOSE))
    if numeric is Numeric.BFLOAT16:
        chosen.append(FastForm(BFLOAT16, to_bfloat16, NEAR))
    if device.type == "cuda":
        chosen.append(FastForm("CUDA graphs", CudaGraphModel, chosen[-1].tolerance))
    return chosen


class ProbeAnswers(NamedTuple):
    """The answers of a model to the images of the self-test."""

    logits: Tensor
    """[n, K]."""
    gradient: Tensor
    """[n, C, H, W]: of the difference of two logits."""
    pair: Tensor
    """[n, 2] int64: the classes of those logits, the top class first."""

    def check_close(self, other: ProbeAnswers, tolerance: float) -> None:
        """Checks that the answers of another form are close to these.

        Raises:
            UnavailableError: logits or gradients differ by more than allowed.
        """
        spread = self.logits.amax(1) - self.logits.amin(1)
        moved = ((other.logits - self.logits).abs().amax(1) / spread).max()
        if not moved <= tolerance:
            raise UnavailableError(
                f"a logit moves by {moved:.2g} of its spread, {tolerance:g} may be"
            )
        gain = self.gradient.abs().flatten(1).sum(1)
        kept = (self.gradient * other.gradient.sign()).flatten(1).sum(1) / gain
        share = kept[gain != 0].mean()
        if not share >= MIN_GAIN_SHARE:
            raise UnavailableError(
                f"steps keep {share:.3f} of the first-order gain, {MIN_GAIN_SHARE:g} is needed"
            )
        # A gradient that moves a logit less than the tolerance has no reliable direction.
        turned_back = (kept < BACKWARDS) & (gain > tolerance * spread)
        if turned_back.any():
            raise UnavailableError(
                f"{int(turned_back.sum())} of {len(turned_back)} images have a reversed gradient"
            )


def probe_answers(module: nn.Module, images: Tensor, pair: Tensor | None = None) -> ProbeAnswers:
    """The answers of a module to images [n, C, H, W].

    `pair` [n, 2] are the classes whose logits are compared, by default the two largest. Faster
    forms use those of the defense itself: where two classes tie, either order is right.
    """
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = module(leaf)
        pair = logits.topk(2).indices if pair is None else pair
        top, second = logits.gather(1, pair).unbind(1)
        gradient = input_gradient((second - top).sum(), leaf)
    return ProbeAnswers(logits.detach().float(), gradient, pair)


def reason_for_plain_form(module: nn.Module, images: Tensor) -> str:
    """Why a module is queried as it was built, tested on images [n, C, H, W]; empty if not."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(part, name) for part in module.modules() for name in hooks):
        return "it carries hooks"
    with torch.no_grad():
        # Each call gets a copy, and its answer is copied: a module may write into both.
        once, twice = module(images.clone()).clone(), module(images.clone()).clone()
        half = len(images) // 2
        mixed = module(torch.cat([images[:half], 1 - images[half:]]))[:half]
    if not once.isfinite().all():
        return "its answers are not finite"
    if not torch.equal(once, twice):
        return "its answers to the same images differ"
    spread = (once.amax(1) - once.amin(1)).amax()
    if not (mixed - once[:half]).abs().amax() <= STEADY * spread:
        return "its answers depend on other images in the batch"
    return ""
