"""The slot array: which item and restart occupies each slot, and how many steps it has made."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bench.engine.problem import BatchProblem
from bench.engine.transfers import to_device
from bench.threats.norms import per_row

HostArray: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
"""[k] int64 on the host."""
HostMask: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]
"""[n] bool on the host."""
EMPTY_SLOT = -1  # item number of an empty slot


class SlotArray:
    """Item, restart and step count of each slot, on the host and on the device.

    The host copies are `item` (EMPTY_SLOT where no item is), `restart` and `step`, [n] int64 each.
    The device copies of restart, step and occupancy are `problem.restart`, `problem.t` and
    `problem.active`, which attacks and the ledger read. Only the methods of this class change
    either copy, and each changes both. A slot is active from `begin` until its restart converges
    or the slot is cleared; a converged slot stays occupied until it is settled.

    Args:
        problem: the rows in the slots, [n] of them; all slots are empty at first.
    """

    def __init__(self, problem: BatchProblem) -> None:
        count, device = len(problem.x), problem.x.device
        self.problem = problem
        self.item = np.full(count, EMPTY_SLOT, dtype=np.int64)
        self.restart = np.zeros(count, dtype=np.int64)
        self.step = np.zeros(count, dtype=np.int64)
        self.converged = torch.zeros(count, dtype=torch.bool, device=device)
        """[n] bool: the restart in the slot has ended before its last step."""
        self.last_image = problem.points.clone()
        """[n, ...]: the iterate at which it ended, as a point."""
        self.last_step = torch.zeros(count, dtype=torch.int64, device=device)
        """[n] int64: the steps made by then."""
        problem.active = self.converged.clone()

    def __len__(self) -> int:
        return len(self.item)

    @property
    def occupied(self) -> HostMask:
        """[n] bool on the host: an item is in the slot."""
        occupied: HostMask = self.item != EMPTY_SLOT
        return occupied

    @property
    def device_occupied(self) -> Tensor:
        """[n] bool on the device: an item is in the slot, active or converged."""
        return self.problem.active | self.converged

    @property
    def count(self) -> int:
        """The number of occupied slots."""
        return int(self.occupied.sum())

    def on_device(self, values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Tensor:
        """A host array [k] as a tensor [k] on the device of the problem."""
        return to_device(torch.from_numpy(values), self.problem.x.device)

    def empty(self, most: int) -> HostArray:
        """The first empty slots, at most so many."""
        return np.flatnonzero(~self.occupied)[:most]

    def holding(self, items: Tensor) -> HostArray:
        """The slots that hold one of these items [k] int64, in slot order."""
        occupied = np.flatnonzero(self.occupied)
        return occupied[np.isin(self.item[occupied], items.numpy())]

    def holding_each(self, items: Tensor) -> HostArray:
        """The slot of each of these items [k] int64, all of which are in a slot."""
        slot = {item: slot for slot, item in enumerate(self.item.tolist())}
        return np.array([slot[item] for item in items.tolist()])

    def begin(self, slots: HostArray, item: HostArray, restart: HostArray) -> None:
        """Begins a restart of an item at step 0 in each of these slots; [k] each."""
        self.item[slots], self.restart[slots], self.step[slots] = item, restart, 0
        where, problem = self.on_device(slots), self.problem
        problem.t[where] = 0
        problem.restart[where] = self.on_device(restart)
        problem.active[where] = True
        self.converged[where] = False
        problem.reset_keys()

    def tick(self) -> None:
        """Counts one step in every occupied slot."""
        self.step += self.occupied
        self.problem.t = self.problem.t + self.device_occupied

    def advance(self, where: Tensor, steps: Tensor) -> None:
        """Counts `steps` [k] int64 steps in the slots `where` [k] int64."""
        self.problem.t = self.problem.t.index_add(0, where, steps)
        self.step[where.cpu().numpy()] += steps.cpu().numpy()

    def converge(self, where: Tensor, images: Tensor) -> None:
        """Ends the restarts in the slots `where` [n] bool at the points `images` [n, ...]."""
        self.last_image = torch.where(per_row(where, images), images, self.last_image)
        self.last_step = torch.where(where, self.problem.t, self.last_step)
        self.converged = self.converged | where
        self.problem.active = self.problem.active & ~where

    def clear(self, slots: HostArray) -> None:
        """Empties these slots [k]."""
        if len(slots):
            self.item[slots], self.step[slots] = EMPTY_SLOT, 0
            where = self.on_device(slots)
            self.problem.active[where] = False
            self.problem.t[where] = 0
            self.converged[where] = False

    def keep(self, slots: HostArray) -> Tensor:
        """Keeps only these slots [k]; returns them as a tensor [k] int64 on the device."""
        self.item, self.restart = self.item[slots], self.restart[slots]
        self.step = self.step[slots]
        where = self.on_device(slots)
        self.problem.keep(where)
        self.converged, self.last_image = self.converged[where], self.last_image[where]
        self.last_step = self.last_step[where]
        return where


def slot_indices(where: Tensor) -> HostArray:
    """The indices [k] int64, on the host, of the slots `where` [n] bool."""
    return where.nonzero()[:, 0].cpu().numpy()
