"""The weights files of the published networks, with their digests."""

from __future__ import annotations

import tomllib
from pathlib import Path

from torch import nn

from bench.plugin import Loader

DIGESTS = Path(__file__).with_name("weights.toml")
"""Defense -> SHA-256 of its weights file, written by the command that trains them."""


def published_digests() -> dict[str, str]:
    """Defense -> SHA-256 of its weights file; empty before the first training."""
    return tomllib.loads(DIGESTS.read_text()) if DIGESTS.is_file() else {}


def weights_file(defense: str) -> str:
    """Name of the weights file of a defense.

    >>> weights_file("mnist-pgd")
    'mnist-pgd.safetensors'
    """
    return f"{defense}.safetensors"


def load_published(loader: Loader, network: nn.Module, defense: str) -> nn.Module:
    """The network with the published weights of a defense; those of another digest are refused."""
    digest = published_digests().get(defense, "none")
    return loader.weights(network, weights_file(defense), sha256=digest)
