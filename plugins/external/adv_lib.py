"""Adversarial Library: minimal-norm attacks by their authors' own hands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor

from bench.plugin import Access, ExternalAttack, ExternalProblem, MissingLibrary, hookimpl
from plugins.external._library_attack import brought, offered, version


@dataclass(frozen=True)
class AdvLib:
    """One attack function of `adv_lib.attacks`, its options set.

    Only the goals it serves are declared: elsewhere the library warns and gives the input back.
    """

    name: str
    kind: str
    """The function in `adv_lib.attacks`."""
    norms: tuple[str, ...]
    cite: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(default_factory=lambda: version("adv-lib"))

    needs = Access.GRADIENTS
    minimises = True
    goals = ("untargeted", "nearest")

    def prepare(self) -> None:
        """Import the library."""
        import_module("adv_lib.attacks")

    def run(self, problem: ExternalProblem) -> Tensor:
        """The nearest wrong answers it finds."""
        attack = getattr(import_module("adv_lib.attacks"), self.kind)
        images: Tensor = attack(problem.model, problem.x, problem.y, **self.options)
        return brought(problem, images, self.minimises)


@hookimpl
def bench_attacks() -> Iterator[ExternalAttack | MissingLibrary]:
    """One or two for each norm."""
    yield from offered("adv_lib", "adv-lib", attacks())


def attacks() -> Iterator[AdvLib]:
    """Their step counts are those of the papers' short versions."""
    nearest = "A radius of its own, shrunk and grown towards the nearest wrong answer."
    inf = float("inf")
    yield AdvLib("adv-lib-fmn-linf", "fmn", ("Linf",), "arXiv:2102.12827", nearest,
                 {"norm": inf, "steps": 100})  # fmt: skip
    yield AdvLib("adv-lib-fmn-l1", "fmn", ("L1",), "arXiv:2102.12827", nearest,
                 {"norm": 1.0, "steps": 100})  # fmt: skip
    duality = "Descent on the image, ascent on the price of a right answer."
    yield AdvLib("adv-lib-pdgd", "pdgd", ("L2",), "arXiv:2106.01538", duality,
                 {"num_steps": 200})  # fmt: skip
    yield AdvLib("adv-lib-pdpgd-linf", "pdpgd", ("Linf",), "arXiv:2106.01538", duality,
                 {"norm": inf, "num_steps": 200})  # fmt: skip
    yield AdvLib("adv-lib-pdpgd-l1", "pdpgd", ("L1",), "arXiv:2106.01538", duality,
                 {"norm": 1.0, "num_steps": 200})  # fmt: skip
