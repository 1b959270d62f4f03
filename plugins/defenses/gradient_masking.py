"""Deliberate gradient masking: controls that add no robustness and that diagnostics must report."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl

FACTOR = 1000.0
GRID = 1.0
CONTROL = "its gradient is hidden on purpose"


class MaskedLogits(nn.Module):
    """A classifier behind a map of its logits that keeps their order and hides the gradient."""

    def __init__(self, classifier: nn.Module, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.mask = classifier, mask

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        return self.mask(self.classifier(images))


def scale_logits(logits: Tensor) -> Tensor:
    """Logits [n, K] times FACTOR, so far apart that softmax - y is exactly 0 in float32."""
    return FACTOR * logits


def quantize_logits(logits: Tensor) -> Tensor:
    """Logits [n, K] rounded to a grid, with a gradient of zero almost everywhere."""
    return (logits / GRID).round() * GRID


def masked_undefended(mask: Callable[[Tensor], Tensor]) -> Callable[[Loader], nn.Module]:
    """A build function for the undefended network behind a map of logits [n, K]."""
    return lambda loader: MaskedLogits(loader.defense("undefended"), mask)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Register both controls without a BPDA approximation, which the diagnostics must report."""
    yield Defense(
        name="scaled-logits",
        summary=f"A control: the undefended network, its logits times {FACTOR:g}.",
        build=masked_undefended(scale_logits),
        quick=False,
    )
    yield Defense(
        name="quantised-logits",
        summary="A control: the undefended network, its logits rounded to whole numbers.",
        build=masked_undefended(quantize_logits),
        quick=False,
        control=CONTROL,
    )
