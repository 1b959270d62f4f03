"""Losses per example: logits [n, K] and labels [n] to [n]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [n, K], label [n]) -> [n]; an attack maximises it."""


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log p(label | x) [n], from logits [n, K] and labels [n]."""
    return F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """max_{j != label} z_j - z_label [n], from logits z [n, K] and labels [n].

    Positive exactly where the prediction is not the label.

    >>> import torch
    >>> margin(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([0]))
    tensor([2.])
    """
    return logits.scatter(1, label[:, None], -math.inf).amax(1) - select_column(logits, label)


def select_column(logits: Tensor, column: Tensor) -> Tensor:
    """logits[i, column[i]] [n], from logits [n, K] and column numbers [n]."""
    return logits.gather(1, column[:, None])[:, 0]


def margin_to(other: Tensor) -> Loss:
    """The loss z_other - z_label, towards one class `other` [n] per example."""
    return lambda logits, label: select_column(logits, other) - select_column(logits, label)
