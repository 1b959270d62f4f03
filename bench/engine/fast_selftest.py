"""A faster form of a defense: the same function in cheaper arithmetic, if its self-tests allow it.

Whatever a quickened module claims is confirmed on the defense as it was built; so a bad form can
waste time and miss successes, but never invent one.
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

CLOSE = 1e-4  # of the spread of the logits: as near as another order of summation is
NEAR = 0.05  # of the spread: as near as bfloat16 is
STEADY = 1e-3  # of the spread: what companions in the batch may move an answer by rounding
BFLOAT16 = "bfloat16"
KEPT = 0.98  # of the first-order gain of a sign step, in the mean over the images
BACKWARDS = -0.5  # of it: an even tie that falls the other way climbs elsewhere, and keeps about 0


class FastModel(NamedTuple):
    """What the attacks ask instead of the defense."""

    module: nn.Module
    applied: tuple[str, ...]
    """The options in force, in order; empty: the defense as it was built."""
    notes: tuple[str, ...]
    """Why others are not, a sentence each."""

    @property
    def low_precision(self) -> bool:
        """Whether it computes in low precision, so that its survivors must be audited."""
        return BFLOAT16 in self.applied


@dataclass(frozen=True)
class FastForm:
    """One way to be faster."""

    name: str
    apply: Callable[[nn.Module], nn.Module]
    """Makes the faster module of the one before; must leave that one as it is."""
    tolerance: float
    """How far a logit may move, as a share of the spread of the logits."""


def fastest_form(module: nn.Module, images: Tensor, numeric: Numeric) -> FastModel:
    """The fastest form of a frozen module that passes the self-test of each option.

    Args:
        module: in eval mode, no parameter asking for a gradient; left as it is.
        images: [n, C, H, W], what the self-tests ask; 32 or more.
        numeric: how far arithmetic may go.
    """
    if numeric is Numeric.FLOAT32:
        return FastModel(module, (), ())
    reason = reason_for_plain_form(module, images)
    if reason:
        return FastModel(module, (), (f"plain float32: {reason}.",))
    wanted: ProbeAnswers = probe_answers(module, images)
    applied, notes = [], []
    for option in fast_forms(numeric, images.device):
        try:
            candidate = option.apply(module)
            wanted.check_close(probe_answers(candidate, images, wanted.pair), option.tolerance)
        except (
            PLUGIN_EXCEPTIONS
        ) as error:  # whatever a stranger's module does when it is traced or cast
            reason = (
                str(error) if isinstance(error, UnavailableError) else f"{type(error).__name__}"
            )
            notes.append(f"without {option.name}: {reason}.")
        else:
            module = candidate
            applied.append(option.name)
    return FastModel(module, tuple(applied), tuple(notes))


def fast_forms(numeric: Numeric, device: torch.device) -> list[FastForm]:
    """In the order in which they are tried, each on top of those that held."""
    chosen = [FastForm("folded BatchNorm", fold_batchnorm, CLOSE)]
    if device.type == "cpu":
        chosen.append(FastForm("blocked slope", block_first_gradient, CLOSE))
    chosen.append(FastForm("ReLU in place", relu_in_place, CLOSE))
    chosen.append(FastForm("channels last", ChannelsLast, CLOSE))
    if numeric is Numeric.BFLOAT16:
        chosen.append(FastForm(BFLOAT16, to_bfloat16, NEAR))
    if device.type == "cuda":
        chosen.append(FastForm("CUDA graphs", CudaGraphModel, chosen[-1].tolerance))
    return chosen


class ProbeAnswers(NamedTuple):
    """What a model says of the probes, and how it would be climbed."""

    logits: Tensor
    gradient: Tensor
    pair: Tensor
    """[n, 2] int64: the classes between which the gradient leads."""

    def check_close(self, other: ProbeAnswers, tolerance: float) -> None:
        """Raise UnavailableError if another model's answers may not stand in for these."""
        spread = self.logits.amax(1) - self.logits.amin(1)
        moved = ((other.logits - self.logits).abs().amax(1) / spread).max()
        if not moved <= tolerance:
            raise UnavailableError(
                f"a logit moves by {moved:.2g} of its spread, {tolerance:g} may be"
            )
        gain = self.gradient.abs().flatten(1).sum(1)
        kept = (self.gradient * other.gradient.sign()).flatten(1).sum(1) / gain
        share = kept[gain != 0].mean()
        if not share >= KEPT:
            raise UnavailableError(
                f"steps keep {share:.3f} of the first-order gain, {KEPT:g} is needed"
            )
        # Nobody can tell the way of a slope that moves less across the box than a logit may here.
        lost = (kept < BACKWARDS) & (gain > tolerance * spread)
        if lost.any():
            raise UnavailableError(
                f"{int(lost.sum())} of {len(lost)} images would be climbed backwards"
            )


def probe_answers(module: nn.Module, images: Tensor, pair: Tensor | None = None) -> ProbeAnswers:
    """Logits [n, K], and the gradient [n, C, H, W] from the top class to the next.

    The defense itself names the `pair` [n, 2] for its faster forms: where two rivals are even to
    the last bit, a form that names the other one climbs no worse.
    """
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = module(leaf)
        pair = logits.topk(2).indices if pair is None else pair
        top, rival = logits.gather(1, pair).unbind(1)
        gradient = input_gradient((rival - top).sum(), leaf)
    return ProbeAnswers(logits.detach().float(), gradient, pair)


def reason_for_plain_form(module: nn.Module, images: Tensor) -> str:
    """Why a module must be asked as it was built; empty when it need not."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(part, name) for part in module.modules() for name in hooks):
        return "it carries hooks"
    with torch.no_grad():
        once, twice = module(images), module(images)
        half = len(images) // 2
        mixed = module(torch.cat([images[:half], 1 - images[half:]]))[:half]
    if not torch.equal(once, twice):
        return "it does not answer alike twice"
    spread = (once.amax(1) - once.amin(1)).amax()
    if not (mixed - once[:half]).abs().amax() <= STEADY * spread:
        return "its answers depend on the images beside"
    return ""
