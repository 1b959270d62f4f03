"""The targets: what is promised, against whom, and how it is seen. A table, top to bottom."""

from __future__ import annotations

from bench.core.cells import Numeric
from bench.plugin import Goal
from tests.benchmarks import engine, peers
from tests.benchmarks.ours import STANDARD, Side, Way, cascade, ours
from tests.benchmarks.peers import FAR, peer
from tests.benchmarks.row import Bar, Measure, Target, named, nearness, race

FAST = Way(Numeric.FAST)
BF16 = Way(Numeric.BFLOAT16, audit=False)
WIDE = FAST._replace(slots=192)
WIDE_BF16 = BF16._replace(slots=192)
"""For the tiny network, whose images are short."""
REFILLED = 96
"""Slots for 128 examples: who leaves makes room for the next."""
NEAREST = Way(goal=Goal("nearest"), ball=FAR)
"""In plain float32: other arithmetic puts what lies on the border on its other side."""

TORCHATTACKS_PGD = peer("torchattacks", peers.torchattacks_pgd)
FOOLBOX_PGD = peer("foolbox", peers.foolbox_pgd)
ART_PGD = peer("art", peers.art_pgd)
APGD = peer("pyautoattack", peers.apgd)
SQUARE = peer("pyautoattack", peers.square(1000))
STANDARD_PEER = peer("pyautoattack", peers.autoattack())


def nearest(package: str, call: peers.Peer) -> Side:
    """A peer that minimises a distance."""
    return peer(package, call, FAR)


def pgd(key: str, world: str, against: str, side: Side, bar: float, way: Way, count: int) -> Target:
    """PGD-40."""
    what = f"PGD-40, {world}, {worded(way)}, against {against}"
    return Target(
        key, what, Bar(bar), race(world, ours("pgd", way), side), count,
        bfloat16=rounds(way),
    )  # fmt: skip


def rounds(way: Way) -> bool:
    """Whether it is played in bfloat16."""
    return way.numeric is Numeric.BFLOAT16


def worded(way: Way) -> str:
    """How it was played."""
    return "bfloat16, confirmed" if rounds(way) else "float32"


def apgd(key: str, world: str, bar: float, count: int) -> Target:
    """APGD-CE-100."""
    what = f"APGD-CE-100, {world}, float32, against pyautoattack"
    return Target(key, what, Bar(bar), race(world, ours("apgd-ce", FAST), APGD), count)


def standard(key: str, world: str, bar: float, count: int, pairs: int, way: Way = FAST) -> Target:
    """The standard battery, a cascade over survivors on both sides."""
    what = f"standard battery, {world}, {worded(way)}, against pyautoattack"
    measure = race(world, cascade(STANDARD, way), STANDARD_PEER)
    return Target(key, what, Bar(bar), measure, count, pairs, bfloat16=rounds(way))


def deepfool(key: str, against: str, side: Side, bar: float) -> Target:
    """DeepFool in L2."""
    what = f"DeepFool-50, digits-std, against {against}"
    measure = race("digits-std", ours("deepfool", NEAREST), side, also=nearness)
    return Target(key, what, Bar(bar), measure, 200, pairs=1 if bar > 20 else 5)


def cw(key: str, against: str, side: Side, bar: float, pairs: int) -> Target:
    """Carlini-Wagner, five rounds of a hundred steps."""
    what = f"C&W-L2 5x100, digits-std, against {against}"
    mine = ours("cw", NEAREST, rounds=5, length=100)
    return Target(key, what, Bar(bar), race("digits-std", mine, side, also=nearness), 200, pairs)


def overhead(key: str, world: str, attack: str, bar: float, **changes: int) -> Target:
    """The price of a step beyond the model's own."""
    what = f"cost of a plain {attack} step, {world}, 256 slots, over its floor"
    measure = engine.overhead(world, attack, **changes)
    return Target(key, what, Bar(bar, at_most=True), measure, engine.SLOTS)


def law(key: str, what: str, measure: Measure, bar: Bar, count: int) -> Target:
    """Something that one look decides."""
    return Target(key, what, bar, measure, count, pairs=1)


def square(key: str, world: str, count: int, way: Way = FAST) -> Target:
    """A thousand questions."""
    what = f"Square-1000, {world}, {worded(way)}, against pyautoattack"
    measure = race(world, ours("square", way), SQUARE)
    return Target(key, what, Bar(2), measure, count, bfloat16=rounds(way))


def matrix(key: str, models: tuple[str, ...], mode: str, bar: float, way: Way = FAST) -> Target:
    """FGSM, APGD, PGD from two starts and Square, against each of them alone with peers."""
    what = f"matrix of 4 attacks x {' + '.join(models)}, {mode}, {worded(way)}, against peer cells"
    measure = engine.matrix(models, mode, way)
    return Target(key, what, Bar(bar), measure, 500, bfloat16=rounds(way))


BOTH = ("digits-std", "digits-adv")


TARGETS = (
    pgd("T1.float32", "resnet18-std", "torchattacks", TORCHATTACKS_PGD, 15,
        FAST._replace(slots=REFILLED), 128),
    pgd("T1.bf16", "resnet18-std", "torchattacks", TORCHATTACKS_PGD, 22,
        BF16._replace(slots=REFILLED), 128),
    pgd("T2.torchattacks", "digits-std", "torchattacks", TORCHATTACKS_PGD, 4.5, FAST, 500),
    pgd("T2.foolbox", "digits-std", "foolbox", FOOLBOX_PGD, 6, FAST, 500),
    pgd("T2.art", "digits-std", "ART", ART_PGD, 6, FAST, 500),
    law(
        "T2.gradients", "PGD-40, digits-std, gradients an example", engine.gradients("digits-std"),
        Bar(8, at_most=True), 500,
    ),
    pgd("T3.float32", "resnet18-adv", "torchattacks", TORCHATTACKS_PGD, 2.3,
        FAST._replace(slots=REFILLED), 128),
    pgd("T3.bf16", "resnet18-adv", "torchattacks", TORCHATTACKS_PGD, 3.5,
        BF16._replace(slots=REFILLED), 128),
    apgd("T4.resnet18-std", "resnet18-std", 40, 128),
    apgd("T4.digits-std", "digits-std", 10, 500),
    apgd("T4.resnet18-adv", "resnet18-adv", 1.4, 64),
    standard("T5.digits-adv", "digits-adv", 2, 100, pairs=5, way=WIDE),
    standard("T5.digits-adv.bf16", "digits-adv", 2, 100, pairs=5, way=WIDE_BF16),
    standard("T5.resnet18-adv", "resnet18-adv", 2, 32, pairs=1),
    standard("T5.resnet18-adv.bf16", "resnet18-adv", 2.5, 32, pairs=1, way=BF16),
    standard("T6.digits-std", "digits-std", 10, 500, pairs=5),
    standard("T6.digits-std.bf16", "digits-std", 10, 500, pairs=5, way=WIDE_BF16),
    standard("T6.resnet18-std", "resnet18-std", 10, 128, pairs=3),
    deepfool("T7.foolbox", "foolbox", nearest("foolbox", peers.foolbox_deepfool), 3),
    deepfool("T7.art", "ART", nearest("art", peers.art_deepfool), 15),
    deepfool("T7.torchattacks", "torchattacks",
             nearest("torchattacks", peers.torchattacks_deepfool), 50),
    cw("T8.foolbox", "foolbox", nearest("foolbox", peers.foolbox_cw), 1.4, pairs=3),
    cw("T8.art", "ART", nearest("art", peers.art_cw), 15, pairs=1),
    square("T9.digits-std", "digits-std", 500, WIDE),
    square("T9.digits-adv", "digits-adv", 100, WIDE),
    square("T9.digits-adv.bf16", "digits-adv", 100, WIDE_BF16),
    overhead("T10.fgsm", "digits-adv", "fgsm", 1.15),
    overhead("T10.pgd", "digits-adv", "pgd", 1.15),
    overhead("T10.apgd", "digits-adv", "apgd-ce", 1.25),
    overhead("T10.apgd-resnet18", "resnet18-adv", "apgd-ce", 1.15, steps=10),
    law(
        "T11", "model calls of compaction over ours, PGD-40, undefended digits, batch 96",
        engine.calls, Bar(2), 1000,
    ),
    law(
        "T12", "examples that differ by batch, order or refill", engine.differing,
        Bar(0, at_most=True), 200,
    ),
    law(
        "T13", "stored wins that fail when they are verified again", engine.false_wins,
        Bar(0, at_most=True), 300,
    ),
    matrix("T14.full-mixed", BOTH, "full", 2, WIDE),
    matrix("T14.full-mixed.bf16", BOTH, "full", 2, WIDE_BF16),
    matrix("T14.full-undefended", BOTH[:1], "full", 5, FAST),
    matrix("T14.full-undefended.bf16", BOTH[:1], "full", 5, WIDE_BF16),
    matrix("T14.rank-mixed", BOTH, "rank", 3, WIDE),
    matrix("T14.rank-mixed.bf16", BOTH, "rank", 3, WIDE_BF16),
    matrix("T14.rank-undefended", BOTH[:1], "rank", 50, WIDE),
    matrix("T14.rank-undefended.bf16", BOTH[:1], "rank", 50, WIDE_BF16),
    law(
        "T15", "a Foolbox attack in the harness over the same attack bare", engine.guarded,
        Bar(1.05, at_most=True), 512,
    ),
)  # fmt: skip

DEVICE_TARGETS: tuple[Target, ...] = (
    pgd("T17.digits-adv", "digits-adv", "torchattacks", TORCHATTACKS_PGD, 5, FAST, 500),
    pgd("T17.resnet18-adv", "resnet18-adv", "torchattacks", TORCHATTACKS_PGD, 2, BF16, 256),
    pgd("T17.resnet18-std", "resnet18-std", "torchattacks", TORCHATTACKS_PGD, 20, BF16, 256),
)
"""On a CUDA device, in wall time; the share of time that the device was busy stands beside."""


def chosen(names: list[str], device: str) -> list[Target]:
    """Those named T1 or T1.bf16 among the targets of this kind of device; all without a name."""
    return named(TARGETS if device == "cpu" else DEVICE_TARGETS, names)
