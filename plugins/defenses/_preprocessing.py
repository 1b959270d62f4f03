"""Models that preprocess the images in front of a classifier."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from bench.plugin import Loader

Preprocessing = Callable[[Tensor], Tensor]
"""Images [n, C, H, W] in [0, 1] to images, each independently of the others."""


class PreprocessedModel(nn.Module):
    """A classifier behind a preprocessing step."""

    def __init__(self, classifier: nn.Module, change: Preprocessing) -> None:
        super().__init__()
        self.classifier, self.change = classifier, change

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        logits: Tensor = self.classifier(self.change(images))
        return logits


def before_undefended(change: Preprocessing) -> Callable[[Loader], nn.Module]:
    """A build function for the undefended network behind a preprocessing step."""
    return lambda loader: PreprocessedModel(loader.defense("undefended"), change)
