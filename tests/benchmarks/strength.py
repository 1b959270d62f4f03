"""Strength: how much of a model each side leaves robust, on the same examples and radius."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.cells import Numeric
from bench.plugin import Goal
from tests.benchmarks import peers
from tests.benchmarks.ours import STANDARD, Side, Way, attack, cascade, ours
from tests.benchmarks.outcome import Outcome
from tests.benchmarks.peers import FAR, peer
from tests.benchmarks.row import SAME, Bar, Both, Measure, Row, Scale, Target, mean, medians, named

SEEDS = 3
FAST = Way(Numeric.FAST)
NEAREST = Way(goal=Goal("nearest"), ball=FAR)
WORLDS = {
    "digits-std": 500, "digits-adv": 500, "resnet18-std": 128, "resnet18-adv": 128,
    "resnet2b": 300,
}  # fmt: skip
"""And how many examples of each."""


def points(name: str, mine: Side, other: Side, needs: Sequence[str]) -> Measure:
    """By how many points our robust accuracy is above the peer's, the mean over seeds."""

    def measure(target: Target, scale: Scale) -> Row:
        for needed in needs:
            attack(needed)
        place = target.place(name, scale)
        runs = [(mine(place, seed), other(place, seed)) for seed in range(target.times(scale))]
        one, two = (mean(run.robust for run in side) for side in zip(*runs, strict=True))
        return summed(target, 100 * (one - two), "points above", runs)

    return measure


def summed(
    target: Target, figure: float, unit: str, runs: Sequence[tuple[Outcome, Outcome]],
    note: str = "", fault: bool = False,
) -> Row:  # fmt: skip
    """A row whose figure is the bar's; the counts are means over the seeds."""
    ours, theirs = zip(*runs, strict=True)
    return Row(
        target.key, target.what, unit, figure, None, figure, target.bar.value, target.bar.at_most,
        target.bar.holds(figure) and not fault,
        robust_ours=mean(run.robust for run in ours),
        robust_peer=mean(run.robust for run in theirs),
        forwards=Both(mean(r.forwards for r in ours), mean(r.forwards for r in theirs)),
        gradients=Both(mean(r.gradients for r in ours), mean(r.gradients for r in theirs)),
        examples=len(ours[0].broken), pairs=len(runs), note=note,
    )  # fmt: skip


def norm(name: str, mine: Side, others: dict[str, Side]) -> Measure:
    """Our median norm over the best peer's, on what both fool."""

    def measure(target: Target, scale: Scale) -> Row:
        place = target.place(name, scale)
        one = mine(place, 0)
        runs = {who: other(place, 0) for who, other in others.items()}
        sizes = {who: medians(one, run) for who, run in runs.items()}
        worst = max(sizes, key=lambda who: sizes[who][0] / sizes[who][1])
        told = ", ".join(
            f"{who} {theirs:.4f} to our {own:.4f} at {1 - runs[who].robust:.1%}"
            for who, (own, theirs) in sizes.items()
        )
        note = f"our success {1 - one.robust:.1%}; {told}"
        figure = sizes[worst][0] / sizes[worst][1]
        return summed(target, figure, "of the best", [(one, runs[worst])], note, one.robust > 0.005)

    return measure


def floor(target: Target, scale: Scale) -> Row:
    """No attack may break what a certificate holds; a lower figure is a fault in the referee."""
    place = target.place("convex-mnist", scale)
    run = ours("apgd-ce")(place, 0)
    return summed(target, 100 * run.robust, "% robust", [(run, run)])


def rivals(name: str, count: int) -> list[Target]:
    """The standard battery and each of its attacks in one world."""
    fabt = peer("pyautoattack", peers.autoattack("fab-t"))
    apgdt = peer("pyautoattack", peers.autoattack("apgd-t"))
    sides = [
        (
            "standard",
            cascade(STANDARD, FAST),
            peer("pyautoattack", peers.autoattack()),
            0.1,
            STANDARD,
            1,
        ),
        ("apgd-ce", ours("apgd-ce", FAST), peer("pyautoattack", peers.apgd), 0.5, (), SEEDS),
        ("square", ours("square", FAST), peer("pyautoattack", peers.square(1000)), 0.5, (), SEEDS),
        ("apgd-t", ours("apgd-t", FAST), apgdt, 0.2, ("apgd-t",), SEEDS),
        # Neither side draws a number.
        ("fab-t", ours("fab-t", FAST), fabt, 0.2, ("fab-t",), 1),
    ]
    return [
        Target(
            f"{what}.{name}", f"{what}, {name}, points of robust accuracy above pyautoattack",
            Bar(bar, at_most=True), points(name, mine, other, needs), count, seeds,
        )
        for what, mine, other, bar, needs, seeds in sides
    ]  # fmt: skip


def nearest(name: str) -> list[Target]:
    """The attacks that minimise a norm."""
    deepfools = {
        "foolbox": peer("foolbox", peers.foolbox_deepfool, FAR),
        "adv-lib": peer("adv_lib", peers.adv_lib_deepfool, FAR),
    }
    cws = {
        "foolbox": peer("foolbox", peers.foolbox_cw, FAR),
        "adv-lib": peer("adv_lib", peers.adv_lib_cw, FAR),
    }
    kinds = [
        ("deepfool", ours("deepfool", NEAREST), deepfools),
        ("cw", ours("cw", NEAREST, rounds=5, length=100), cws),
    ]
    return [
        Target(
            f"{what}.{name}", f"{what}, {name}, median L2 over the best peer's",
            Bar(1 + SAME, at_most=True), norm(name, mine, others), 200, 1,
        )
        for what, mine, others in kinds
    ]  # fmt: skip


def table() -> list[Target]:
    """All, world by world."""
    found = [target for name, count in WORLDS.items() for target in rivals(name, count)]
    found += [target for name in ("digits-std", "digits-adv") for target in nearest(name)]
    what = "apgd-ce, convex-mnist, % robust where a certificate holds 94.2"
    return [*found, Target("certified.convex-mnist", what, Bar(94.2), floor, 10_000, 1)]


def chosen(names: list[str]) -> list[Target]:
    """Those named standard or standard.digits-std; all without a name."""
    return named(table(), names)
