"""The table of speed targets: attack, case, peer and threshold of each."""

from __future__ import annotations

from bench.core.cells import Numeric
from bench.plugin import Goal
from tests.benchmarks import engine_targets
from tests.benchmarks import peer_attacks as peers
from tests.benchmarks.comparison import (
    Measure,
    Target,
    Threshold,
    against_peer,
    distance_fault,
    select_targets,
)
from tests.benchmarks.our_runs import STANDARD, Runner, RunOptions, cascade, ours
from tests.benchmarks.peer_attacks import WHOLE_BOX, peer

FAST = RunOptions(Numeric.FAST)
BF16 = RunOptions(Numeric.BFLOAT16, audit=False)
WIDE = FAST._replace(slots=192)
WIDE_BF16 = BF16._replace(slots=192)
"""More slots for the small network on 8 x 8 images."""
REFILL_SLOTS = 96
"""Fewer slots than the 128 examples, so that slots are refilled."""
NEAREST = RunOptions(goal=Goal("nearest"), ball=WHOLE_BOX)
"""Plain float32: rounding changes the class of points next to the decision boundary."""

TORCHATTACKS_PGD = peer("torchattacks", peers.torchattacks_pgd)
FOOLBOX_PGD = peer("foolbox", peers.foolbox_pgd)
ART_PGD = peer("art", peers.art_pgd)
APGD = peer("pyautoattack", peers.apgd)
SQUARE = peer("pyautoattack", peers.square(1000))
STANDARD_PEER = peer("pyautoattack", peers.autoattack())


def minimum_norm_peer(package: str, call: peers.Peer) -> Runner:
    """The runner of a peer's attack that minimises a distance."""
    return peer(package, call, WHOLE_BOX)


def pgd(
    key: str,
    case: str,
    against: str,
    runner: Runner,
    threshold: float,
    options: RunOptions,
    count: int,
) -> Target:
    """PGD-40 against a peer."""
    what = f"PGD-40, {case}, {arithmetic(options)}, against {against}"
    return Target(
        key, what, Threshold(threshold), against_peer(case, ours("pgd", options), runner), count,
        bfloat16=in_bfloat16(options),
    )  # fmt: skip


def in_bfloat16(options: RunOptions) -> bool:
    """Whether the attack runs in bfloat16."""
    return options.numeric is Numeric.BFLOAT16


def arithmetic(options: RunOptions) -> str:
    """The arithmetic as text."""
    return "bfloat16, confirmed" if in_bfloat16(options) else "float32"


def apgd(key: str, case: str, threshold: float, count: int) -> Target:
    """APGD-CE-100 against pyautoattack."""
    what = f"APGD-CE-100, {case}, float32, against pyautoattack"
    return Target(
        key, what, Threshold(threshold), against_peer(case, ours("apgd-ce", FAST), APGD), count
    )


def standard(
    key: str, case: str, threshold: float, count: int, pairs: int, options: RunOptions = FAST
) -> Target:
    """The standard suite, on both sides a cascade over unbroken examples."""
    what = f"standard suite, {case}, {arithmetic(options)}, against pyautoattack"
    measure = against_peer(case, cascade(STANDARD, options), STANDARD_PEER)
    return Target(
        key, what, Threshold(threshold), measure, count, pairs, bfloat16=in_bfloat16(options)
    )


def deepfool(key: str, against: str, runner: Runner, threshold: float) -> Target:
    """DeepFool in L2 against a peer."""
    what = f"DeepFool-50, digits-std, against {against}"
    measure = against_peer("digits-std", ours("deepfool", NEAREST), runner, check=distance_fault)
    return Target(key, what, Threshold(threshold), measure, 200, pairs=1 if threshold > 20 else 5)


def cw(key: str, against: str, runner: Runner, threshold: float, pairs: int) -> Target:
    """Carlini-Wagner, 5 rounds of 100 steps, against a peer."""
    what = f"C&W-L2 5x100, digits-std, against {against}"
    mine = ours("cw", NEAREST, rounds=5, length=100)
    return Target(
        key,
        what,
        Threshold(threshold),
        against_peer("digits-std", mine, runner, check=distance_fault),
        200,
        pairs,
    )


def overhead(key: str, case: str, attack: str, threshold: float, **changes: int) -> Target:
    """The time of an attack step over the model time in it."""
    what = f"cost of a plain {attack} step, {case}, 256 slots, over its model time"
    measure = engine_targets.step_overhead(case, attack, **changes)
    return Target(
        key, what, Threshold(threshold, at_most=True), measure, engine_targets.OVERHEAD_SLOTS
    )


def fact(key: str, what: str, measure: Measure, threshold: Threshold, count: int) -> Target:
    """A figure that one measurement decides."""
    return Target(key, what, threshold, measure, count, pairs=1)


def square(
    key: str, case: str, count: int, options: RunOptions = FAST, threshold: float = 2
) -> Target:
    """Square with 1,000 queries against pyautoattack."""
    what = f"Square-1000, {case}, {arithmetic(options)}, against pyautoattack"
    measure = against_peer(case, ours("square", options), SQUARE)
    return Target(key, what, Threshold(threshold), measure, count, bfloat16=in_bfloat16(options))


def matrix(
    key: str, models: tuple[str, ...], mode: str, threshold: float, options: RunOptions = FAST
) -> Target:
    """FGSM, APGD, PGD from two starts and Square against the same attacks of peers."""
    run = f"{' + '.join(models)}, {mode}, {arithmetic(options)}"
    what = f"matrix of 4 attacks x {run}, against peer cells"
    measure = engine_targets.matrix(models, mode, options)
    return Target(key, what, Threshold(threshold), measure, 500, bfloat16=in_bfloat16(options))


BOTH = ("digits-std", "digits-adv")


TARGETS = (
    pgd("T1.float32", "resnet18-std", "torchattacks", TORCHATTACKS_PGD, 8,
        FAST._replace(slots=REFILL_SLOTS), 128),
    pgd("T1.bf16", "resnet18-std", "torchattacks", TORCHATTACKS_PGD, 14,
        BF16._replace(slots=REFILL_SLOTS), 128),
    pgd("T2.torchattacks", "digits-std", "torchattacks", TORCHATTACKS_PGD, 4.5, FAST, 500),
    pgd("T2.foolbox", "digits-std", "foolbox", FOOLBOX_PGD, 5, FAST, 500),
    pgd("T2.art", "digits-std", "ART", ART_PGD, 6, FAST, 500),
    fact(
        "T2.gradients", "PGD-40, digits-std, gradients per example",
        engine_targets.gradients("digits-std"),
        Threshold(8, at_most=True), 500,
    ),
    pgd("T3.float32", "resnet18-adv", "torchattacks", TORCHATTACKS_PGD, 1.6,
        FAST._replace(slots=REFILL_SLOTS), 128),
    pgd("T3.bf16", "resnet18-adv", "torchattacks", TORCHATTACKS_PGD, 3,
        BF16._replace(slots=REFILL_SLOTS), 128),
    apgd("T4.resnet18-std", "resnet18-std", 40, 128),
    apgd("T4.digits-std", "digits-std", 10, 500),
    apgd("T4.resnet18-adv", "resnet18-adv", 1.4, 64),
    standard("T5.digits-adv", "digits-adv", 2, 100, pairs=5, options=WIDE),
    standard("T5.digits-adv.bf16", "digits-adv", 2, 100, pairs=5, options=WIDE_BF16),
    standard("T5.resnet18-adv", "resnet18-adv", 2, 32, pairs=1),
    standard("T5.resnet18-adv.bf16", "resnet18-adv", 2.5, 32, pairs=1, options=BF16),
    standard("T6.digits-std", "digits-std", 10, 500, pairs=5),
    standard("T6.digits-std.bf16", "digits-std", 10, 500, pairs=5, options=WIDE_BF16),
    standard("T6.resnet18-std", "resnet18-std", 10, 128, pairs=3),
    deepfool("T7.foolbox", "foolbox", minimum_norm_peer("foolbox", peers.foolbox_deepfool), 3),
    deepfool("T7.art", "ART", minimum_norm_peer("art", peers.art_deepfool), 15),
    deepfool("T7.torchattacks", "torchattacks",
             minimum_norm_peer("torchattacks", peers.torchattacks_deepfool), 50),
    cw("T8.foolbox", "foolbox", minimum_norm_peer("foolbox", peers.foolbox_cw), 1.3, pairs=3),
    cw("T8.art", "ART", minimum_norm_peer("art", peers.art_cw), 15, pairs=1),
    square("T9.digits-std", "digits-std", 500, WIDE),
    square("T9.digits-adv", "digits-adv", 100, WIDE, 1.5),
    square("T9.digits-adv.bf16", "digits-adv", 100, WIDE_BF16),
    overhead("T10.fgsm", "digits-adv", "fgsm", 1.25),
    overhead("T10.pgd", "digits-adv", "pgd", 1.15),
    overhead("T10.apgd", "digits-adv", "apgd-ce", 1.25),
    overhead("T10.apgd-resnet18", "resnet18-adv", "apgd-ce", 1.15, steps=10),
    fact(
        "T11", "model calls of compaction over ours, PGD-40, undefended digits, batch 96",
        engine_targets.fewer_calls, Threshold(2), 1000,
    ),
    fact(
        "T12", "examples that differ by batch, order or refill", engine_targets.batch_dependence,
        Threshold(0, at_most=True), 200,
    ),
    fact(
        "T13", "adversarial examples that fail a second verification",
        engine_targets.failed_verifications,
        Threshold(0, at_most=True), 300,
    ),
    matrix("T14.full-mixed", BOTH, "full", 2, WIDE),
    matrix("T14.full-mixed.bf16", BOTH, "full", 2, WIDE_BF16),
    matrix("T14.full-undefended", BOTH[:1], "full", 5, FAST),
    matrix("T14.full-undefended.bf16", BOTH[:1], "full", 5, WIDE_BF16),
    matrix("T14.rank-mixed", BOTH, "rank", 2.5, WIDE),
    matrix("T14.rank-mixed.bf16", BOTH, "rank", 3.5, WIDE_BF16),
    matrix("T14.rank-undefended", BOTH[:1], "rank", 11, WIDE),
    matrix("T14.rank-undefended.bf16", BOTH[:1], "rank", 11, WIDE_BF16),
    fact(
        "T15", "a Foolbox attack in the harness over the same attack alone",
        engine_targets.external_overhead,
        Threshold(1.05, at_most=True), 512,
    ),
)  # fmt: skip

DEVICE_TARGETS: tuple[Target, ...] = (
    pgd("T17.digits-adv", "digits-adv", "torchattacks", TORCHATTACKS_PGD, 5, FAST, 500),
    pgd("T17.resnet18-adv", "resnet18-adv", "torchattacks", TORCHATTACKS_PGD, 2, BF16, 256),
    pgd("T17.resnet18-std", "resnet18-std", "torchattacks", TORCHATTACKS_PGD, 20, BF16, 256),
)
"""Targets on a CUDA device, in wall time; notes state the share of time the device was busy."""


def selected(names: list[str], device: str) -> list[Target]:
    """Targets of a kind of device named T1 or T1.bf16, all without a name; KeyError else."""
    return select_targets(TARGETS if device == "cpu" else DEVICE_TARGETS, names)
