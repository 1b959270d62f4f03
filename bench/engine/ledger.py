"""Counts of queries and gradient evaluations per row, and refusal beyond the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.threats.access import Budget


class QueryLedger:
    """Counts the queries and gradient evaluations of each row and refuses those over the budget."""

    def __init__(self, rows: int, budget: Budget, device: torch.device) -> None:
        self.forwards = torch.zeros(rows, dtype=torch.int64, device=device)
        self.gradients = torch.zeros_like(self.forwards)
        self.refused = torch.zeros(rows, dtype=torch.bool, device=device)
        """[n] bool: the row has made a query that its budget does not cover."""
        self.budget = budget

    @property
    def limited(self) -> bool:
        """Whether the budget has any limit."""
        return self.budget != Budget()

    def reset(self, rows: Tensor) -> None:
        """Sets the counts of these rows [k] int64 to zero."""
        self.forwards[rows] = 0
        self.gradients[rows] = 0
        self.refused[rows] = False

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows [k] int64."""
        self.forwards, self.gradients = self.forwards[rows], self.gradients[rows]
        self.refused = self.refused[rows]

    def charge(self, where: Tensor, forwards: int, gradients: int) -> Tensor:
        """Charges the rows `where` [n] bool; returns those [n] bool whose budget covers it."""
        if self.limited:
            fits = self._fits(self.forwards + forwards, self.budget.queries)
            fits &= self._fits(self.gradients + gradients, self.budget.gradients)
            self.refused |= where & ~fits
            where = where & fits
        self.forwards.add_(where, alpha=forwards)
        if gradients:
            self.gradients.add_(where, alpha=gradients)
        return where

    def _fits(self, count: Tensor, limit: int | None) -> Tensor:
        return torch.ones_like(self.refused) if limit is None else count <= limit
