"""Diagnostic of declared randomness: what a random defense still promises.

Its answer is what it gives on average. So the mean over draws must be stable, and the noise must
not depend on whether an image is a clean one. How often a single draw differs does not matter where
more draws are declared, over which attackers average.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.plugin import Diagnostic, Evidence, Finding, Subject, hookimpl
from plugins.diagnostics._model_probe import (
    ModelDiagnostic,
    draws_of,
    logits_of,
    uniform_noise,
    warn_if,
)

DRAWS = 32
"""Draws of each of the two means that are compared."""
UNSTABLE = 0.15
"""Share of images with two predictions by two means, above which the mean is not stable."""
TOO_FEW = 0.4
"""Share of means over the declared draws with another prediction than that over all draws, above
which the declared draws are too few."""
STEPS = (1 / 255, 8 / 255)
"""Changes of every pixel beside which the noise must be about the same."""
RATIO = 4.0
"""Ratio of the deviation of the logits beside an image to that at the image."""


class DeclaredRandomness(ModelDiagnostic):
    """Whether a declared-random defense answers stably on average, with noise of one size."""

    name = "declared-randomness"
    cite = "arXiv:1802.00420"
    summary = "Raised when the mean over draws is not stable, or noise depends on the image."
    images = 32

    def finding(self, subject: Subject) -> Evidence:
        """The finding, the stability of the mean, and the noise on and beside images."""
        if subject.defense.randomness is None:
            return Evidence(Finding.NOT_TESTED, "No randomness is declared.")
        one, two = (drawn(subject, subject.x) for _ in range(2))
        first, second = one.mean(0).argmax(1), two.mean(0).argmax(1)
        unstable = float((first != second).double().mean())
        draws = min(draws_of(subject.defense), DRAWS // 2)
        groups = torch.stack(
            [part.mean(0) for part in torch.split(one, draws) if len(part) == draws]
        )
        short = float((groups.argmax(2) != first).double().mean())
        here = deviation(one)
        generator = torch.Generator().manual_seed(0)
        beside = [
            deviation(drawn(subject, uniform_noise(subject.x, step, generator))) for step in STEPS
        ]
        ratio = max(
            max(there / here, here / there) if here and there else float("inf") for there in beside
        )
        if not here and not any(beside):
            return Evidence(Finding.NOT_TESTED, f"Logits do not vary over {DRAWS} draws.")
        return warn_if(
            unstable > UNSTABLE or short > TOO_FEW or ratio > RATIO,
            f"two means over {DRAWS} draws differ in their prediction on {unstable:.0%} of"
            f" {len(first)} images, means over the declared {draws} on {short:.0%}, and beside"
            f" the images the noise is up to {ratio:.2g} times larger or smaller; a warning needs"
            f" more than {UNSTABLE:.0%}, {TOO_FEW:.0%} or {RATIO:g} times.",
        )


def drawn(subject: Subject, images: Tensor) -> Tensor:
    """Logits [DRAWS, n, K] of images [n, C, H, W]."""
    return torch.stack([logits_of(subject.module, images) for _ in range(DRAWS)]).double()


def deviation(logits: Tensor) -> float:
    """The root mean square over images of the deviation of logits [DRAWS, n, K]."""
    return float(logits.var(0).mean().sqrt())


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the test of declared randomness."""
    yield DeclaredRandomness()
