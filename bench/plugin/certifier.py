"""Contract of a certifier."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from bench.threats.norms import PerturbationSet


class Certifier(Protocol):
    """Proves examples robust: no image of the perturbation set changes their class.

    Optional attributes: `cite`, `summary`, `error` (the probability that a statistical certificate
    of one example is wrong; absent or 0 where it is deterministic), `quick` (False where it takes
    longer than the attacks on a small network: used with `--certify all` only).
    """

    name: str
    exact: bool
    """True where every example that is not certified can be broken (a complete verifier)."""

    def refuses(self, module: nn.Module, ball: PerturbationSet) -> str:
        """Why it does not support this module and perturbation set; empty where it does."""

    def certify(self, module: nn.Module, x: Tensor, y: Tensor, ball: PerturbationSet) -> Tensor:
        """Which images x [n, C, H, W] with labels y [n] are certified, bool [n].

        True: correctly classified on every image in the ball and in [0, 1].
        """
