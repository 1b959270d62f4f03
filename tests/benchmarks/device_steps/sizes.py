"""The sizes of a device run: full on a device, small for a rehearsal on a CPU."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """How much a device run measures."""

    trained: bool
    """Whether networks are trained; else they have random weights and their own labels."""
    verdict_examples: int
    square_steps: int
    digits_examples: int
    resnet_examples: int
    suite_examples: int
    pgd_steps: int
    apgd_steps: int
    suite: bool
    """Whether the whole standard suite is run beside the peer; else its first attack."""
    wide: tuple[int, int]
    """Depth and widening factor of the WideResNet."""
    wide_examples: int
    slots: int
    slot_counts: tuple[int, ...]
    worker_seconds: float
    training_batch: int
    training_batches: int
    sandbox_images: int


SIZES = {
    "full": Size(
        trained=True, verdict_examples=500, square_steps=1000, digits_examples=500,
        resnet_examples=256, suite_examples=128, pgd_steps=40, apgd_steps=100, suite=True,
        wide=(28, 10), wide_examples=64, slots=256,
        slot_counts=(32, 64, 128, 256, 512, 1024, 2048), worker_seconds=6.0,
        training_batch=128, training_batches=20, sandbox_images=128,
    ),
    "small": Size(
        trained=False, verdict_examples=64, square_steps=20, digits_examples=64,
        resnet_examples=4, suite_examples=4, pgd_steps=3, apgd_steps=4, suite=False,
        wide=(10, 1), wide_examples=4, slots=32, slot_counts=(32, 64), worker_seconds=0.5,
        training_batch=2, training_batches=1, sandbox_images=8,
    ),
}  # fmt: skip
