"""Training losses that several recipes share, each [n] from one training batch."""

from __future__ import annotations

from torch import Tensor

from bench.plugin import TrainingBatch, cross_entropy


def clean_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy -log p(y | x) [n] of the clean images [n, C, H, W]."""
    return cross_entropy(batch.model(batch.x), batch.y)


def adversarial_loss(batch: TrainingBatch) -> Tensor:
    """The cross-entropy -log p(y | x') [n] of the inner attack's images [n, C, H, W]."""
    return cross_entropy(batch.model(batch.adv), batch.y)
