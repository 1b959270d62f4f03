"""Argmax-only output: a control that hides its gradient and adds no robustness."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl


class ArgmaxOnly(nn.Module):
    """A model that returns the one-hot prediction of a classifier, without scores or gradient."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to one-hot predictions [n, K]."""
        logits = self.classifier(images)
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


def build(loader: Loader) -> nn.Module:
    """The undefended network with its scores hidden."""
    return ArgmaxOnly(loader.defense("undefended"))


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register the control without a BPDA approximation, which the diagnostics must report."""
    yield Defense(
        name="argmax-only",
        summary="A control: the undefended network with its scores and gradients hidden.",
        build=build,
        control="its gradient is hidden on purpose",
    )
