"""A model that sees every image through the nuisance of a physical threat model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.threats.nuisance import Nuisance
from bench.threats.random_numbers import KeyedRandomNumbers, example_key


class NuisanceModel(nn.Module):
    """The answers of a model to images at new draws of a nuisance in each call.

    A call takes one number from torch's global generator, which the harness seeds, as for defenses
    that declare randomness: attacks, confirmations and verdicts have draws of their own.
    """

    def __init__(self, nuisance: Nuisance, module: nn.Module) -> None:
        super().__init__()
        self.nuisance, self.module = nuisance, module

    def forward(self, images: Tensor) -> Tensor:
        """The answers [n, K] to images [n, C, H, W]."""
        answers: Tensor = self.module(self.nuisance.seen(images, self._draws(images)))
        return answers

    def _draws(self, images: Tensor) -> KeyedRandomNumbers:
        """Random numbers of one call for images [n, C, H, W]."""
        row = torch.arange(len(images), device=images.device)
        call = int(torch.randint(2**62, ()))
        return KeyedRandomNumbers(example_key(call, "nuisance", row, row * 0), row * 0)


def seen_through(nuisance: Nuisance | None, module: nn.Module) -> nn.Module:
    """The model behind a nuisance; the model itself without one."""
    return module if nuisance is None else NuisanceModel(nuisance, module)
