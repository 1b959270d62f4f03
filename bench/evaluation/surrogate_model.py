"""The model that a transfer attack queries instead of the defense, on the defense's examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bench.engine.model_access import ModelAccess
from bench.engine.surrogate_iterates import SurrogateIterates

Heartbeat = Callable[[], None]


def no_heartbeat() -> None:
    """Do nothing: the heartbeat where no lease has to be extended."""


@dataclass(frozen=True)
class SurrogateModel:
    """A surrogate model with its answers to the clean images of a defense."""

    module: nn.Module
    """Images [n, C, H, W] to logits [n, K], or [n, K + 1] where it rejects."""
    clean_logits: Tensor
    """[n, K]: logits of the clean images."""
    bpda: nn.Module | None = None
    """Its declared BPDA approximation; None without one."""
    rejects: bool = False

    def access(self) -> ModelAccess:
        """Access without limits, because an attacker owns its surrogate."""
        return ModelAccess(
            self.module, bpda=self.bpda, rejects=self.rejects, title="the surrogate model"
        )


@dataclass
class PlannedSurrogate:
    """A surrogate whose digest is known; the model is built or learned when a cell needs it."""

    digest: str
    """Part of the cell's key: weights and source, or how it is learned from the defense."""
    make: Callable[[Heartbeat], SurrogateModel]
    iterates: SurrogateIterates | None = None
    """Iterates on this surrogate, shared by all defenses; None: each cell makes its own."""
    _made: SurrogateModel | None = None

    def model(self, heartbeat: Heartbeat = no_heartbeat) -> SurrogateModel:
        """The model, made at the first call; `heartbeat` is called while it is made."""
        if self._made is None:
            self._made = self.make(heartbeat)
        return self._made
