"""Profiles: named batteries of attacks, one for each perturbation set they cover; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.core.errors import BenchError


@dataclass(frozen=True)
class Suite:
    """Attacks that belong together, so that their joint figure can be named."""

    name: str
    attacks: Mapping[str, tuple[str, ...]]
    """By name of the perturbation set."""
    summary: str
    cite: str

    def on(self, board: str, norm: str, access: str, goal: str) -> tuple[str, ...]:
        """The battery on a board of this set, access and goal; BenchError where it has none."""
        covered = ", ".join(self.attacks)
        if norm not in self.attacks:
            raise BenchError(
                f"suite {self.name} covers {covered}; {board} is {norm}: name its attacks with "
                "--attack."
            )
        if (access, goal) != ("gradients", "untargeted"):
            raise BenchError(
                f"suite {self.name} is for untargeted attacks that see gradients; {board} "
                f"reveals {access} and is {goal}: name its attacks with --attack."
            )
        return self.attacks[norm]


SUITES: Mapping[str, Suite] = {
    "standard": Suite(
        "standard",
        {
            "Linf": ("apgd-ce", "apgd-t", "fab-t", "square-5000"),
            "L2": ("apgd-ce", "apgd-t", "fab-t", "square-l2-5000"),
            "L1": ("apgd-l1-ce", "apgd-l1-t", "fab-t", "square-l1-5000"),
        },
        "AutoAttack's standard protocol: four attacks, the worst case over them for each example.",
        "arXiv:2003.01690",
    )
}


def find_suite(name: str) -> Suite:
    """A suite by its name; BenchError where there is none."""
    if name not in SUITES:
        raise BenchError(f"--suite came as {name!r}; use one of {', '.join(SUITES)}.")
    return SUITES[name]
