"""Targets of attack strength: robust accuracy or distance beside peers on the same examples."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.cells import Numeric
from bench.plugin import Goal
from plugins.threats._protocols import GRADIENT, SCORE
from tests.benchmarks import peer_attacks
from tests.benchmarks.comparison import (
    NORM_TOLERANCE,
    CountPair,
    Measure,
    Scale,
    Target,
    TargetResult,
    Threshold,
    common_medians,
    mean,
    select_targets,
)
from tests.benchmarks.our_runs import STANDARD, Runner, RunOptions, attack, cascade, ours
from tests.benchmarks.peer_attacks import WHOLE_BOX, peer
from tests.benchmarks.run_result import RunResult

SEEDS = 3
FAST = RunOptions(Numeric.FAST)
NEAREST = RunOptions(goal=Goal("nearest"), ball=WHOLE_BOX)
CASES = {
    "digits-std": 500, "digits-adv": 500, "resnet18-std": 128, "resnet18-adv": 128,
    "resnet2b": 300,
}  # fmt: skip
"""Case -> number of examples."""
PROTOCOL = (*GRADIENT["Linf"], SCORE["Linf"])
"""The gradient and score attacks that the built-in Linf leaderboards require."""


def points_above_peer(name: str, mine: Runner, other: Runner, needs: Sequence[str]) -> Measure:
    """Points of robust accuracy that ours leaves above the peer, the mean over seeds."""

    def measure(target: Target, scale: Scale) -> TargetResult:
        for needed in needs:
            attack(needed)
        case = target.case(name, scale)
        runs = [(mine(case, seed), other(case, seed)) for seed in range(target.times(scale))]
        one, two = (mean(run.robust for run in side) for side in zip(*runs, strict=True))
        return strength_result(target, 100 * (one - two), "points above", runs)

    return measure


def strength_result(
    target: Target, figure: float, unit: str, runs: Sequence[tuple[RunResult, RunResult]],
    note: str = "", fault: bool = False,
) -> TargetResult:  # fmt: skip
    """A result whose figure is compared with the threshold; counts are means over seeds."""
    ours, theirs = zip(*runs, strict=True)
    return TargetResult(
        target.key, target.what, unit, figure, None, figure, target.threshold.value,
        target.threshold.at_most,
        target.threshold.holds(figure) and not fault,
        robust_ours=mean(run.robust for run in ours),
        robust_peer=mean(run.robust for run in theirs),
        forwards=CountPair(mean(r.forwards for r in ours), mean(r.forwards for r in theirs)),
        gradients=CountPair(mean(r.gradients for r in ours), mean(r.gradients for r in theirs)),
        examples=len(ours[0].broken), pairs=len(runs), note=note,
    )  # fmt: skip


def distance_ratio(name: str, mine: Runner, others: dict[str, Runner]) -> Measure:
    """Our median norm over that of the best peer, on examples that both broke."""

    def measure(target: Target, scale: Scale) -> TargetResult:
        case = target.case(name, scale)
        one = mine(case, 0)
        runs = {package: other(case, 0) for package, other in others.items()}
        sizes = {package: common_medians(one, run) for package, run in runs.items()}
        worst = max(sizes, key=lambda package: sizes[package][0] / sizes[package][1])
        details = ", ".join(
            f"{package} {theirs:.4f} to our {own:.4f} at {1 - runs[package].robust:.1%}"
            for package, (own, theirs) in sizes.items()
        )
        note = f"our success {1 - one.robust:.1%}; {details}"
        figure = sizes[worst][0] / sizes[worst][1]
        return strength_result(
            target, figure, "of the best", [(one, runs[worst])], note, one.robust > 0.005
        )

    return measure


def certified(target: Target, scale: Scale) -> TargetResult:
    """Robust accuracy of a certified network: below its certificate, the referee is at fault."""
    case = target.case("convex-mnist", scale)
    run = ours("apgd-ce")(case, 0)
    return strength_result(target, 100 * run.robust, "% robust", [(run, run)])


def suite_targets(name: str, count: int) -> list[Target]:
    """The standard suite and each of its attacks on one case."""
    fabt = peer("pyautoattack", peer_attacks.autoattack("fab-t"))
    apgdt = peer("pyautoattack", peer_attacks.autoattack("apgd-t"))
    sides = [
        (
            "standard",
            cascade(STANDARD, FAST),
            peer("pyautoattack", peer_attacks.autoattack()),
            0.1,
            STANDARD,
            1,
        ),
        (
            "protocol",
            cascade(PROTOCOL, FAST),
            peer("pyautoattack", peer_attacks.autoattack()),
            0.4,
            PROTOCOL,
            1,
        ),
        ("apgd-ce", ours("apgd-ce", FAST), peer("pyautoattack", peer_attacks.apgd), 0.5, (), SEEDS),
        (
            "square",
            ours("square", FAST),
            peer("pyautoattack", peer_attacks.square(1000)),
            0.5,
            (),
            SEEDS,
        ),
        ("apgd-t", ours("apgd-t", FAST), apgdt, 0.2, ("apgd-t",), SEEDS),
        # Both implementations are deterministic.
        ("fab-t", ours("fab-t", FAST), fabt, 0.2, ("fab-t",), 1),
    ]
    return [
        Target(
            f"{what}.{name}", f"{what}, {name}, points of robust accuracy above pyautoattack",
            Threshold(threshold, at_most=True), points_above_peer(name, mine, other, needs),
            count, seeds,
        )
        for what, mine, other, threshold, needs, seeds in sides
    ]  # fmt: skip


def distance_targets(name: str) -> list[Target]:
    """The attacks that minimise a norm on one case."""
    deepfools = {
        "foolbox": peer("foolbox", peer_attacks.foolbox_deepfool, WHOLE_BOX),
        "adv-lib": peer("adv_lib", peer_attacks.adv_lib_deepfool, WHOLE_BOX),
    }
    cws = {
        "foolbox": peer("foolbox", peer_attacks.foolbox_cw, WHOLE_BOX),
        "adv-lib": peer("adv_lib", peer_attacks.adv_lib_cw, WHOLE_BOX),
    }
    kinds = [
        ("deepfool", ours("deepfool", NEAREST), deepfools),
        ("cw", ours("cw", NEAREST, rounds=5, length=100), cws),
    ]
    return [
        Target(
            f"{what}.{name}", f"{what}, {name}, median L2 over the best peer's",
            Threshold(1 + NORM_TOLERANCE, at_most=True), distance_ratio(name, mine, others), 200, 1,
        )
        for what, mine, others in kinds
    ]  # fmt: skip


def all_targets() -> list[Target]:
    """All targets, case by case."""
    found = [target for name, count in CASES.items() for target in suite_targets(name, count)]
    found += [target for name in ("digits-std", "digits-adv") for target in distance_targets(name)]
    what = "apgd-ce, convex-mnist, % robust where 94.2 are certified"
    return [*found, Target("certified.convex-mnist", what, Threshold(94.2), certified, 10_000, 1)]


def selected(names: list[str]) -> list[Target]:
    """Targets named standard or standard.digits-std, all without a name; KeyError else."""
    return select_targets(all_targets(), names)
