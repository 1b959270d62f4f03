"""Zero-gradient diagnostic: counts images at which a white-box attack has no gradient to follow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Diagnostic, Evidence, Loss, Subject, cross_entropy, hookimpl, margin
from plugins.diagnostics._model_probe import ModelDiagnostic, input_gradient, warn_if

LIMIT = 0.05
"""Share of images; a few lie where every unit of a small network is inactive."""


class ZeroGradients(ModelDiagnostic):
    """Share of clean images whose cross-entropy has a gradient that is zero or not finite.

    Where the defense declares a BPDA approximation, its gradient counts, since attacks use both;
    the share of the true gradient is stated.
    """

    name = "zero-gradients"
    cite = "arXiv:1802.00420"
    summary = f"Raised above {LIMIT:.0%} of the images."
    images = 256

    def finding(self, subject: Subject) -> Evidence:
        """The finding, the number of such images and the type of gradients."""
        n = len(subject.x)
        true = useless(subject.module, subject, cross_entropy)
        found = (
            f"the gradient of the cross-entropy is zero or not finite on {int(true.sum())} of {n}"
            " images"
        )
        if float(true.double().mean()) <= LIMIT:
            return warn_if(False, f"{found}.")
        if subject.bpda is not None:
            left = useless(subject.bpda, subject, cross_entropy)
            share = float(left.double().mean())
            return warn_if(
                share > LIMIT,
                f"{found}; attacks use the declared BPDA approximation, too, whose gradient is zero"
                f" or not finite on {int(left.sum())}.",
            )
        return warn_if(True, f"{found}, more than {LIMIT:.0%}; {_type_of(subject)}.")


def _type_of(subject: Subject) -> str:
    """The type of useless gradients and the attack that answers it (arXiv:1802.00420)."""
    declared = (
        "a BPDA approximation is declared"
        if subject.defense.bpda
        else "no BPDA approximation is declared"
    )
    gradient = input_gradient(
        subject.module, subject.x, lambda logits: cross_entropy(logits, subject.y)
    )
    if not torch.isfinite(gradient).all():
        return f"exploding gradients: rescale the logits, or reparameterise; {declared}"
    left = float(useless(subject.module, subject, margin).double().mean())
    if left <= LIMIT:
        return "vanishing gradients: the loss is saturated, and that of the margin is not zero"
    return f"shattered gradients: attack with BPDA or without gradients; {declared}"


def useless(module: nn.Module, subject: Subject, loss: Loss) -> Tensor:
    """[n]: images whose gradient of the loss is zero or not finite."""
    gradient = input_gradient(module, subject.x, lambda logits: loss(logits, subject.y)).flatten(1)
    return (gradient == 0).all(1) | ~torch.isfinite(gradient).all(1)


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the count of zero gradients."""
    yield ZeroGradients()
