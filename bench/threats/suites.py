"""Attack suites: named lists of attacks for each norm. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.core.errors import BenchError


@dataclass(frozen=True)
class Suite:
    """A named list of attacks, as AutoAttack standard, for each norm that it covers."""

    name: str
    attacks: Mapping[str, tuple[str, ...]]
    """Norm -> names of the attacks."""
    summary: str
    cite: str

    def attacks_for(self, threat: str, norm: str, access: str, goal: str) -> tuple[str, ...]:
        """The attacks for a threat model of this norm, access and goal.

        Raises BenchError where the suite does not cover it.
        """
        covered = ", ".join(self.attacks)
        if norm not in self.attacks:
            raise BenchError(
                f"suite {self.name} covers {covered}; {threat} is {norm}: use --attack instead."
            )
        if (access, goal) != ("gradients", "untargeted"):
            raise BenchError(
                f"suite {self.name} is for untargeted attacks with gradients; {threat} "
                f"has access {access} and goal {goal}: use --attack instead."
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
    """The suite of that name. Raises BenchError where there is none."""
    if name not in SUITES:
        raise BenchError(f"--suite is {name!r}; use one of {', '.join(SUITES)}.")
    return SUITES[name]
