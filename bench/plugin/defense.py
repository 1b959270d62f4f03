"""Contract of a defense: its record, and the loader of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from bench.core.cards import Claim
from bench.plugin.training import Recipe


class Loader(Protocol):
    """Loads weights into a defense's modules; the argument of `Defense.build`."""

    shape: tuple[int, int, int]
    """(C, H, W) of the data set."""
    classes: int
    """K, the number of classes."""

    def trained(self, module: nn.Module) -> nn.Module:
        """The module with the weights that the defense's own recipe trains."""

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module with the weights of a safetensors file beside the plugin, or in `BENCH_DATA`.

        A file with another SHA-256 than `sha256` is refused; empty: not checked.
        """

    def defense(self, name: str) -> nn.Module:
        """The built module of another registered defense."""


@dataclass(frozen=True)
class Randomness:
    """Declares that a defense is random: it answers differently on each call."""

    draws: int = 10
    """Number of gradients that an attack averages (EOT, arXiv:1707.07397)."""


@dataclass(frozen=True)
class Defense:
    """A defense: how its module is built, and what its author declares.

    The module maps images [n, C, H, W] in [0, 1] to logits [n, K], float32.
    """

    name: str
    build: Callable[[Loader], nn.Module]
    datasets: tuple[str, ...] = ("digits",)
    """Names of the data sets for which it can be built."""
    cite: str = ""
    summary: str = ""
    claims: tuple[Claim, ...] = ()
    recipe: Recipe | None = None
    """How `loader.trained` gets its weights; None where nothing is trained."""
    bpda: Callable[[Loader], nn.Module] | None = None
    """Builds the BPDA approximation (arXiv:1802.00420), whose gradients attacks use instead."""
    randomness: Randomness | None = None
    """None: the same images always get the same logits."""
    surrogate: str = "undefended"
    """Name of the defense whose gradients transfer attacks use."""
    quick: bool = True
    """Whether `bench run` without --defense evaluates it."""
    forwards: int = 1
    """Passes of the network per query; above 20 it is evaluated on 128 examples."""
    rejects: float | None = None
    """Share of clean images that it is tuned to reject; None where it rejects none.

    With a share, the module returns [n, K + 1]: the logits and, as the last column, a rejection
    score minus its threshold. An image is rejected where that is positive.
    """
    control: str = ""
    """Why this built-in control hides its gradient on purpose; contract checks of its gradient do
    not apply then. Has no effect in a plugin that is not built in."""
