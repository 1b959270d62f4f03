"""Diagnostics of vanishing, exploding and stochastic gradients (arXiv:1802.00420, section 3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl, margin
from plugins.diagnostics._model_probe import (
    ModelDiagnostic,
    draws_of,
    input_gradient,
    warn_if,
)

SMALLEST, LARGEST = 1e-5, 1e3
"""Linearised distance to the decision boundary, in pixel ranges, of gradients of a usual size."""
UNDERFLOW = 1e-30
"""Norm of a gradient below which products with it underflow in float32."""
RANGE = 6.0
"""Decades between the 5 % and the 95 % quantile of the gradients' norms."""
LEAST_COSINE = 0.25
"""Median cosine of two gradients, each the mean over the declared draws; that of either with the
gradient of the mean is then the root, a half."""
STEADY = 1e-4


class GradientScale(ModelDiagnostic):
    """Whether gradients of the margin vanish or explode.

    The linearised distance |f| / ||grad f||_1 of an image is the change of every pixel that would
    cross the decision boundary if the margin f were linear.
    """

    name = "gradient-scale"
    cite = "arXiv:1802.00420"
    summary = "Raised when gradients vanish or explode."

    def finding(self, subject: Subject) -> Evidence:
        """The finding, the median linearised distance and the range of the norms."""
        values: list[Tensor] = []

        def kept_margin(logits: Tensor) -> Tensor:
            values.append(margin(logits, subject.y))
            return values[-1]

        gradient = input_gradient(subject.module, subject.x, kept_margin).flatten(1).double()
        norms, f = gradient.abs().sum(1), values[-1].detach().double().abs()
        if not torch.isfinite(norms).all():
            return Evidence(Finding.WARNING, "exploding gradients: that of the margin overflows.")
        used = norms > 0
        if not used.any():
            sentence = "The gradient of the margin is zero on all images; see zero-gradients."
            return Evidence(Finding.NOT_TESTED, sentence)
        if float(norms[used].median()) < UNDERFLOW:
            sentence = f"vanishing gradients: that of the margin is below {UNDERFLOW:g}"
            return warn_if(True, f"{sentence}; rescale the logits.")
        distance = float((f[used] / norms[used]).median())
        low, high = torch.quantile(norms[used].log10(), torch.tensor([0.05, 0.95]).to(norms))
        decades = float(high - low)
        sentence = (
            f"the linearised distance to the decision boundary is {distance:.2g} pixel ranges in"
            f" the median, and the norms of the gradients span {decades:.1f} decades"
        )
        if distance < SMALLEST:
            return warn_if(True, f"exploding gradients: {sentence}; reparameterise.")
        if distance > LARGEST:
            return warn_if(True, f"vanishing gradients: {sentence}; rescale the logits.")
        if decades > RANGE:
            return warn_if(True, f"vanishing or exploding gradients: {sentence}.")
        return warn_if(False, f"{sentence}.")


class StochasticGradients(ModelDiagnostic):
    """Whether two gradients at the same image agree, each averaged over the declared draws."""

    name = "stochastic-gradients"
    cite = "arXiv:1802.00420"
    summary = "Raised when gradients vary undeclared, or more than the declared draws average out."
    images = 32

    def finding(self, subject: Subject) -> Evidence:
        """The finding and the median cosine of two gradients."""
        draws = draws_of(subject.defense)
        one, two = (mean_gradient(subject.module, subject, draws) for _ in range(2))
        size = torch.maximum(one.norm(dim=1), two.norm(dim=1))
        used = (size > 0) & torch.isfinite(size)
        if not used.any():
            return Evidence(Finding.NOT_TESTED, "The gradient of the margin is zero on all images.")
        one, two = one[used], two[used]
        if subject.defense.randomness is None:
            moved = float(((one - two).norm(dim=1) / size[used]).max())
            sentence = f"two gradients at one image differ by at most {moved:.2g} of their norm"
            raised = moved > STEADY
            advice = "; average over draws (EOT)" if raised else ""
            return warn_if(raised, f"{sentence}{advice}.")
        cosine = float(torch.nn.functional.cosine_similarity(one, two).median())
        raised = cosine < LEAST_COSINE
        advice = "; more draws are needed (EOT)" if raised else ""
        return warn_if(
            raised,
            f"two gradients at one image, each the mean over the declared {draws} draws, have a"
            f" median cosine of {cosine:.2f}{advice}.",
        )


def mean_gradient(module: nn.Module, subject: Subject, draws: int) -> Tensor:
    """The gradient of the margin, [n, C * H * W], averaged over draws."""
    total = torch.zeros_like(subject.x)
    for _ in range(draws):
        total += input_gradient(module, subject.x, lambda logits: margin(logits, subject.y))
    return (total / draws).flatten(1).double()


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register both diagnostics."""
    yield GradientScale()
    yield StochasticGradients()
