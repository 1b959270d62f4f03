"""Contract of a defense: the record, its claims and the loader that hands it weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from bench.core.cards import Claim
from bench.plugin.training import Recipe


class Loader(Protocol):
    """Weights by name and digest; the only way weights reach a defense."""

    shape: tuple[int, int, int]
    """(C, H, W) of the data set at hand."""
    classes: int

    def trained(self, module: nn.Module) -> nn.Module:
        """The module, filled with the weights of *this* defense's recipe."""

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module, filled from a safetensors file beside the plugin (or in `BENCH_DATA`).

        A file of another `sha256` is refused; without one, any file of that name will do.
        """

    def defense(self, name: str) -> nn.Module:
        """Another registered defense, built."""


@dataclass(frozen=True)
class Randomness:
    """A defense that answers differently on each call, and says so."""

    draws: int = 10
    """Samples that an attacker averages a gradient over (EOT, arXiv:1707.07397)."""


@dataclass(frozen=True)
class Defense:
    """An ordinary module from images in [0, 1] to logits, and what its author says of it."""

    name: str
    build: Callable[[Loader], nn.Module]
    datasets: tuple[str, ...] = ("digits",)
    cite: str = ""
    summary: str = ""
    claims: tuple[Claim, ...] = ()
    recipe: Recipe | None = None
    bpda: Callable[[Loader], nn.Module] | None = None
    """What an attacker differentiates through where `build` gives no useful gradient."""
    randomness: Randomness | None = None
    surrogate: str = "undefended"
    """The defense that transfer attacks ask instead of this one."""
    quick: bool = True
    """Played by `bench run` without --defense."""
    forwards: int = 1
    """Passes of the network that one answer takes; above 20 a board plays 128 examples."""
    rejects: float | None = None
    """The share of clean images that it means to reject; None where it answers every image.

    With it the module answers [n, K + 1]: the logits and, last, a rejection score less the
    threshold that was set on calibration images; an image is rejected where that is positive.
    """
    control: str = ""
    """Why this built-in control hides its gradient on purpose; contract checks of its gradient do
    not apply then. Has no effect in a plugin that is not built in."""
