"""Deliberate gradient masking: controls that gain no robustness and must be flagged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from bench.plugin import Defense, Loader, hookimpl

FACTOR = 1000.0
GRID = 1.0
CONTROL = "its gradient is hidden on purpose"


class MaskedLogits(nn.Module):
    """The same answers through a map that keeps their order, and starves an attack."""

    def __init__(self, classifier: nn.Module, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.mask = classifier, mask

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        return self.mask(self.classifier(images))


def scale_logits(logits: Tensor) -> Tensor:
    """Logits so far apart that float32 knows no second class: softmax - y is exactly 0."""
    return FACTOR * logits


def quantize_logits(logits: Tensor) -> Tensor:
    """Logits on a grid: a staircase, flat wherever it has a slope."""
    return (logits / GRID).round() * GRID


def masked_undefended(mask: Callable[[Tensor], Tensor]) -> Callable[[Loader], nn.Module]:
    """What builds the undefended network behind a mask."""
    return lambda loader: MaskedLogits(loader.defense("undefended"), mask)


@hookimpl
def bench_defenses() -> Iterator[Defense]:
    """Offer both controls; neither declares a stand-in, which is what diagnostics must notice."""
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
