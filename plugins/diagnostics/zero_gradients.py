"""Zero-gradient diagnostic: counts images at which a white-box attack has no gradient to follow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.plugin import Defense, Diagnostic, Evidence, Finding, cross_entropy, hookimpl
from plugins.diagnostics._model_probe import input_gradient, seeded_random_state

LIMIT = 0.01


class ZeroGradients:
    """Share of clean images whose cross-entropy has a gradient that is zero or not finite."""

    name = "zero-gradients"
    cite = "arXiv:1802.00420"
    summary = f"Raised above {LIMIT:.0%} of the images; the model's own gradient, not BPDA."

    def examine(self, module: nn.Module, x: Tensor, y: Tensor, defense: Defense) -> Evidence:
        """The finding and the number of such images, for x [n, C, H, W]."""
        with seeded_random_state(x):
            gradient = input_gradient(module, x, lambda logits: cross_entropy(logits, y)).flatten(1)
        useless = (gradient == 0).all(1) | ~torch.isfinite(gradient).all(1)
        count, share = int(useless.sum()), float(useless.double().mean())
        found = f"the gradient of the cross-entropy is zero or not finite on {count} of {len(x)}"
        if share <= LIMIT:
            return Evidence(Finding.PASSED, f"{found} images.")
        way_out = (
            "attacks use the declared BPDA approximation"
            if defense.bpda
            else "no BPDA approximation is declared"
        )
        return Evidence(Finding.WARNING, f"{found} images, more than {LIMIT:.0%}; {way_out}.")


@hookimpl
def bench_diagnostics() -> Iterator[Diagnostic]:
    """Register the count of zero gradients."""
    yield ZeroGradients()
