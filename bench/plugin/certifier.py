"""Contract of a certifier."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from bench.threats.norms import PerturbationSet


class Certifier(Protocol):
    """A proof: which examples nobody inside the perturbation set can break.

    Optional: `cite`, `summary`, `error` (the probability with which a statistical proof of one
    example may be wrong; absent or 0: the proof is deterministic, and one counterexample is an
    error of the certifier), `quick` (False where a proof of a small network takes longer than its
    attacks: asked with `--certify all` only).
    """

    name: str
    exact: bool
    """True when an example that is not certified can be broken (a lower *and* an upper bound)."""

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why it cannot speak of this model and set; empty when it can."""

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """[n] bool: right on every image of ball and box."""
