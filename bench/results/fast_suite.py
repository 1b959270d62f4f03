"""The suite `fast`: an attack with early stops, then `standard` on few of its survivors. No torch.

`standard` runs on the survivors with the largest loss and on a random sample of the others, the
audit. Where one of the sample falls, or a gradient-masking check warns, it runs on all survivors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bench.core.cells import FAST
from bench.core.errors import BenchError
from bench.core.protocols import LeaderboardProtocol
from bench.threats import suites
from bench.threats.suites import SUITES, Suite

EARLY_STOP = {"Linf": "apgd-early-stop", "L2": "apgd-early-stop", "L1": "apgd-l1-early-stop"}
"""Norm -> the attack that meets every example."""

FAST_SUITE = Suite(
    FAST,
    {norm: (first, *SUITES["standard"].attacks[norm]) for norm, first in EARLY_STOP.items()},
    "APGD with early stops; the standard protocol on the survivors nearest to falling and, as an"
    " audit, on a random sample of the others.",
    "arXiv:2407.02240",
)


def all_suites() -> Mapping[str, Suite]:
    """Every suite by name."""
    return {**suites.SUITES, FAST: FAST_SUITE}


def suite_named(name: str) -> Suite:
    """The suite of that name. Raises BenchError where there is none."""
    known = all_suites()
    if name not in known:
        raise BenchError(f"--suite is {name!r}; use one of {', '.join(known)}.")
    return known[name]


def mode_of_suite(suite: str, mode: str, attacks: Collection[str] = ()) -> str:
    """The mode in which a suite runs: `fast` for the suite of that name, else the given one.

    Raises BenchError where the suite `fast` comes with another mode or with attacks, and where the
    mode `fast` comes without it.
    """
    if suite == FAST and mode in ("full", FAST) and not attacks:
        return FAST
    if suite == FAST or mode == FAST:
        came = f"--mode {mode}" + "".join(f" --attack {name}" for name in attacks)
        raise BenchError(f"{came} came with --suite {suite or 'none'}; use --suite fast alone.")
    return mode


def fast_protocol(protocol: LeaderboardProtocol, norm: str) -> LeaderboardProtocol:
    """What a row of the suite `fast` needs for a rank; its warnings call for no further attacks."""
    return LeaderboardProtocol(
        required=FAST_SUITE.attacks.get(norm, ()), ranked=protocol.ranked and norm in EARLY_STOP
    )


def mode_option(mode: str) -> str:
    """The option of `bench run` with which the cells of a mode are evaluated; empty for full."""
    return {"full": "", FAST: f" --suite {FAST}"}.get(mode, f" --mode {mode}")
