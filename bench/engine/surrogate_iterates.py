"""The last iterates of a transfer attack, kept for the defenses that are evaluated later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KEPT_BYTES = 2**25  # of the iterates of one attack on one surrogate; what is beyond is made anew


class LastIterates(NamedTuple):
    """Last iterates of restarts, one row each, and what each restart cost."""

    point: Tensor
    """[m, ...]: points of the perturbation set."""
    forwards: Tensor
    """[m] int64 on the host, as is `gradients`: queries of the surrogate."""
    gradients: Tensor


class SurrogateIterates:
    """The last iterates of one attack on one surrogate, by example and restart.

    They hold for one threat model's set and goal, on the same examples with the same seed.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], LastIterates] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def missing(self, items: Sequence[int], restart: int) -> list[int]:
        """Those of the items whose last iterate in this restart is not known."""
        return [item for item in items if (item, restart) not in self._rows]

    def add(self, items: Sequence[int], restart: int, found: LastIterates) -> None:
        """Keep the iterates of these items [m], as long as there is room."""
        for row, item in enumerate(items):
            one = LastIterates(*(column[row : row + 1].clone() for column in found))
            self._bytes += one.point.numel() * one.point.element_size()
            if self._bytes > KEPT_BYTES:
                return
            self._rows[item, restart] = one

    def known(self, items: Sequence[int], restart: int) -> LastIterates:
        """The iterates of these items [m], all of which are known."""
        rows = [self._rows[item, restart] for item in items]
        return LastIterates(*(torch.cat(column) for column in zip(*rows, strict=True)))
