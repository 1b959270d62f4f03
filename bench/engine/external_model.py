"""The model that an external attack library queries: access checks, counts and budget."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bench.core.errors import PluginError
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess
from bench.threats.access import Access

AnswerCallback = Callable[[Tensor, Tensor, Tensor], bool]
"""(images [b, C, H, W], whole answers [b, K], row of each image [b]) -> True to end the run."""


class AttackStopped(BaseException):
    """Ends the run of an external attack: its budget is spent, or every row is broken.

    A `BaseException`, so that no `except Exception` inside the library catches it. The ledger is
    stopped before it is raised; while the ledger is running, other code has raised it.
    """


class ExternalLedger:
    """Counts the queries of an external attack, and records which row each image belongs to.

    Calls with all rows are added up and charged when `counts` is read, because a library makes
    thousands of them on a small model.

    Args:
        ledger: the counts of n rows.
        active: [n] bool; the other rows are padding, which is answered and not charged.
    """

    def __init__(self, ledger: QueryLedger, active: Tensor) -> None:
        self._ledger, self.active = ledger, active
        self.count = len(active)
        self.all_rows = self.rows = torch.arange(self.count, device=active.device)
        self.running = True
        self._forwards = self._gradients = 0

    @property
    def counts(self) -> QueryLedger:
        """The counts of the rows, up to date."""
        if self._forwards or self._gradients:
            self._ledger.charge(self.active, self._forwards, self._gradients)
            self._forwards = self._gradients = 0
        return self._ledger

    def charge(self, rows: Tensor, images: int, forwards: int, gradients: int) -> None:
        """Charges images to their rows [b] int64.

        Raises:
            AttackStopped: the run has ended, or a row would exceed its budget.
        """
        if not self.running:
            raise AttackStopped
        if self.count == 1:
            forwards, gradients = forwards * images, gradients * images
        if not self._ledger.limited and (rows is self.all_rows or self.count == 1):
            self._forwards += forwards
            self._gradients += gradients
            return
        named = torch.zeros_like(self.active).index_fill(0, rows, True)
        self.counts.charge(named & self.active, forwards, gradients)
        if self._ledger.refused.any():
            self.stop()

    def stop(self) -> NoReturn:
        """Ends the run; every later query raises AttackStopped, too.

        Raises:
            AttackStopped: always.
        """
        self.running = False
        raise AttackStopped


class ExternalModel(nn.Module):
    """The defense as an external attack sees it: counted queries, no parameters, modules or state.

    Args:
        model_access: the defense.
        access: which part of its answers the attack sees.
        ledger: counts the queries.
        name: of the attack, for error messages.
        shape: (C, H, W) of an image.
        on_answer: called with every answer.
    """

    def __init__(
        self,
        model_access: ModelAccess,
        access: Access,
        ledger: ExternalLedger,
        *,
        name: str,
        shape: tuple[int, ...],
        on_answer: AnswerCallback,
    ) -> None:
        super().__init__()
        self.training = False
        self._model_access, self._access, self._ledger = model_access, access, ledger
        self._name, self._shape, self._on_answer = name, shape, on_answer

    def train(self, mode: bool = True) -> ExternalModel:
        """Has no effect: the model stays in eval mode."""
        return self

    @contextmanager
    def for_rows(self, rows: Tensor) -> Iterator[None]:
        """Context in which the queried images belong to the rows `rows` [b] int64.

        Raises:
            PluginError: a row occurs twice.
        """
        if len(torch.unique(rows)) != len(rows):
            raise PluginError(f"{self._name} named a row twice; each image needs a row of its own.")
        named = rows.to(self._ledger.active.device, copy=True)
        before, self._ledger.rows = self._ledger.rows, named
        try:
            yield
        finally:
            self._ledger.rows = before

    def forward(self, images: Tensor) -> Tensor:
        """The part of the answer [b, K] to images [b, C, H, W] that the access level allows."""
        self._require_answers()
        rows, count = self._rows_of(images), images.shape[0]
        draws = self._model_access.draws_at(self._access)
        charge = self._ledger.charge
        charge(rows, count, draws, 0)
        answer = self._answer(images)
        if answer.requires_grad:
            # The hook belongs to the library's graph and is freed with it.
            answer.register_hook(  # type: ignore[no-untyped-call]
                lambda _: charge(rows, count, 0, draws)
            )
        if self._on_answer(images.detach(), answer.detach(), rows):
            self._ledger.stop()
        logits = self._model_access.visible(answer)
        if self._access == Access.LABELS:
            return one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
        return logits

    def _require_answers(self) -> None:
        """Raises PluginError where the attack may not see even a label."""
        self._model_access.require(Access.LABELS)
        if self._access == Access.NOTHING:
            raise PluginError(
                f"{self._name} queried the model, but declares needs = Access.NOTHING; "
                "declare needs = Access.LABELS, or a higher level of access."
            )

    def _rows_of(self, images: Any) -> Tensor:
        """The row [b] int64 of each image."""
        if not isinstance(images, Tensor) or images.dtype is not torch.float32:
            kind = getattr(images, "dtype", type(images).__name__)
            raise PluginError(f"{self._name} queried {kind} images; float32 was expected.")
        if images.dim() != 4 or images.shape[1:] != self._shape:
            raise PluginError(
                f"{self._name} queried images {list(images.shape)}; "
                f"[rows, {', '.join(map(str, self._shape))}] was expected."
            )
        rows = self._ledger.rows
        if self._ledger.count == 1:
            return rows.expand(images.shape[0])
        if images.shape[0] != rows.shape[0]:
            raise PluginError(
                f"{self._name} queried {len(images)} images for {len(rows)} rows, so that their "
                "rows are unknown; name them with model.for_rows(rows), or set rows = 1."
            )
        return rows

    def _answer(self, images: Tensor) -> Tensor:
        """Answers [b, K] of the charged draws; with a graph where access allows it."""
        model_access = self._model_access
        if self._access < Access.GRADIENTS:
            images = images.detach()
        if self._access == Access.LABELS:
            return model_access.label_answers(images)
        if model_access.draws == 1:
            return model_access.answer_with_graph(images)
        draws = [model_access.answer_with_graph(images) for _ in range(model_access.draws)]
        return torch.stack(draws).mean(0)


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Context that seeds the global random generators and restores all global state afterwards.

    Seeded and restored are the generators of torch, numpy and Python. Warnings are ignored, and
    output goes to standard error, because standard output is for data.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    running = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if running else ()
    with (
        torch.random.fork_rng(list(devices)),
        warnings.catch_warnings(),
        redirect_stdout(sys.stderr),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed % 2**63)
        if devices:
            torch.cuda.manual_seed_all(seed % 2**63)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
