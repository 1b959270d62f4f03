"""What is known of the row in each slot, beside what the attack knows of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bench.threats.norms import per_row

Places: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Slots by number, on the host."""


@dataclass
class Slots:
    """One entry a slot, on the device: images [n, C, H, W], the rest [n]."""

    playing: Tensor
    """A row sits here."""
    found: Tensor
    """It has a success that waits for its confirmation."""
    ended: Tensor
    """Its run has converged."""
    best: Tensor
    """The first success, or the nearest where the attack minimises."""
    distance: Tensor
    """Of `best`, for an attack that minimises; infinite without any."""
    hit_step: Tensor
    hit_run: Tensor
    hit_forwards: Tensor
    hit_gradients: Tensor
    last: Tensor
    """The iterate at which the run converged."""
    last_step: Tensor

    @classmethod
    def empty(cls, x: Tensor) -> Slots:
        """Nobody sits anywhere; `x` [n, C, H, W] gives sizes and device."""
        number = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        no = number > 0
        far = torch.full_like(number, math.inf, dtype=torch.float32)
        return cls(
            playing=no, found=no.clone(), ended=no.clone(), best=x.clone(), distance=far,
            hit_step=number - 1, hit_run=number - 1, hit_forwards=number,
            hit_gradients=number.clone(), last=x.clone(), last_step=number.clone(),
        )  # fmt: skip

    def forget(self, where: Tensor) -> None:
        """Nothing is found in these slots: a new row sits down, or its claim did not stand."""
        self.found[where] = False
        self.distance[where] = math.inf

    def begin(self, where: Tensor) -> None:
        """A run begins in these slots."""
        self.playing[where] = True
        self.ended[where] = False

    def converge(self, where: Tensor, adv: Tensor, step: Tensor) -> None:
        """The runs of these rows [n] bool are over; `adv` and `step` are where they stand."""
        self.last = torch.where(per_row(where, adv), adv, self.last)
        self.last_step = torch.where(where, step, self.last_step)
        self.ended = self.ended | where

    def kept(self, where: Tensor) -> Slots:
        """These slots only."""
        return Slots(*(getattr(self, field.name)[where] for field in fields(self)))


def numbers(where: Tensor) -> Places:
    """The numbers of the slots `where` [n] bool."""
    return where.nonzero()[:, 0].cpu().numpy()
