"""A map from images to images, and a network that sees only what the map leaves of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from bench.plugin import Loader

Preprocessing = Callable[[Tensor], Tensor]
"""Images [n, C, H, W] in [0, 1] to images, each by itself."""


class PreprocessedModel(nn.Module):
    """Classify what is left of the image after a change."""

    def __init__(self, classifier: nn.Module, change: Preprocessing) -> None:
        super().__init__()
        self.classifier, self.change = classifier, change

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [0, 1] to logits [n, K]."""
        answer: Tensor = self.classifier(self.change(images))
        return answer


def before_undefended(change: Preprocessing) -> Callable[[Loader], nn.Module]:
    """What builds the undefended network behind a change."""
    return lambda loader: PreprocessedModel(loader.defense("undefended"), change)
