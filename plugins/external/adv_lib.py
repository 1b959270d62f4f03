"""Attacks of Adversarial Library: minimal-norm attacks as their authors implemented them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from bench.plugin import ExternalAttack, ExternalProblem, MissingLibrary, hookimpl
from plugins.external._library_attack import LibraryAttack, registered, version


@dataclass(frozen=True)
class AdvLib(LibraryAttack):
    """One attack function of `adv_lib.attacks` with its options.

    It serves no targeted goal: there some of the library's functions warn and return their input.
    """

    version: str = field(default_factory=lambda: version("adv-lib"))

    modules: ClassVar[tuple[str, ...]] = ("adv_lib.attacks",)

    def generate(self, problem: ExternalProblem) -> Tensor:
        """The nearest adversarial examples [n, C, H, W] that the function finds."""
        images: Tensor = self.implementation(problem.model, problem.x, problem.y, **self.options)
        return images


@hookimpl
def bench_attacks() -> Iterator[ExternalAttack | MissingLibrary]:
    """Register FMN in two norms and the primal-dual attacks in all three."""
    yield from registered("adv_lib", "adv-lib", attacks())


def attacks() -> Iterator[AdvLib]:
    """The attacks, with the step counts of the short versions in their papers."""
    fmn = "Fast minimum-norm attack: adapts the radius of its ball to the nearest wrong answer."
    primal_dual = "Primal-dual descent: minimises the distance under a penalty on right answers."
    inf = float("inf")
    for norm, p in (("Linf", inf), ("L1", 1.0)):
        yield AdvLib(
            f"adv-lib-fmn-{norm.lower()}", "fmn", (norm,), "arXiv:2102.12827", fmn,
            options={"norm": p, "steps": 100},
        )  # fmt: skip
    yield AdvLib(
        "adv-lib-pdgd", "pdgd", ("L2",), "arXiv:2106.01538", primal_dual,
        options={"num_steps": 200},
    )  # fmt: skip
    for norm, p in (("Linf", inf), ("L1", 1.0)):
        yield AdvLib(
            f"adv-lib-pdpgd-{norm.lower()}", "pdpgd", (norm,), "arXiv:2106.01538", primal_dual,
            options={"norm": p, "num_steps": 200},
        )  # fmt: skip
