"""Attack losses per example: logits [n, K] and labels [n] to [n]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from bench.core.statistics import clopper_pearson as clopper_pearson

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [n, K], label [n]) -> [n]; an attack climbs it."""


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log softmax(logits)[label]."""
    return F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """max_{j != label} z_j - z_label: positive exactly where the answer is wrong."""
    return logits.scatter(1, label[:, None], -math.inf).amax(1) - select_column(logits, label)


def select_column(logits: Tensor, column: Tensor) -> Tensor:
    """logits[i, column[i]]."""
    return logits.gather(1, column[:, None])[:, 0]


def margin_to(rival: Tensor) -> Loss:
    """z_rival - z_label: towards one class a row."""
    return lambda logits, label: select_column(logits, rival) - select_column(logits, label)


def per_image(value: Tensor) -> Tensor:
    """[n] shaped to multiply images [n, C, H, W] row by row."""
    return value[:, None, None, None]
