"""What a library is handed instead of the defense: it answers, counts, hides, and stops in time."""

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
from bench.engine.answers import checked_logits
from bench.engine.ledger import QueryLedger
from bench.engine.model_access import ModelAccess
from bench.threats.access import Access

AnswerCallback = Callable[[Tensor, Tensor, Tensor], bool]
"""(images [b, C, H, W], whole answers, the row of each [b]): hears every answer; True ends it."""


class AttackStopped(BaseException):
    """Ends a library's run from within: its budget is spent, or nothing is left to win.

    No `except Exception` inside the library swallows it. The till is closed before it is raised:
    where it is open, somebody else raised it.
    """


class ExternalLedger:
    """What the rows of a run have spent, and whose each image is.

    Calls about all rows are added up, and booked when somebody looks: a library on a small model
    makes thousands of them.

    Args:
        ledger: [n] purses, one a row.
        active: [n] bool: the others are there to fill up; they are answered and pay nothing.
    """

    def __init__(self, ledger: QueryLedger, active: Tensor) -> None:
        self._ledger, self.active = ledger, active
        self.count = len(active)
        self.all_rows = self.rows = torch.arange(self.count, device=active.device)
        self.running = True
        self._forwards = self._gradients = 0

    @property
    def ledger(self) -> QueryLedger:
        """The purses, everything booked."""
        if self._forwards or self._gradients:
            self._ledger.charge(self.active, self._forwards, self._gradients)
            self._forwards = self._gradients = 0
        return self._ledger

    def charge(self, rows: Tensor, images: int, forwards: int, gradients: int) -> None:
        """Charge each image to its row; Stopped where one cannot pay."""
        if not self.running:
            raise AttackStopped
        if self.count == 1:
            forwards, gradients = forwards * images, gradients * images
        if not self._ledger.limited and (rows is self.all_rows or self.count == 1):
            self._forwards += forwards
            self._gradients += gradients
            return
        named = torch.zeros_like(self.active).index_fill(0, rows, True)
        self.ledger.charge(named & self.active, forwards, gradients)
        if self._ledger.refused.any():
            self.stop()

    def stop(self) -> NoReturn:
        """Whoever asks from now on is stopped too."""
        self.running = False
        raise AttackStopped


class ExternalModel(nn.Module):
    """A defense behind glass: eval mode, no parameter to touch, exact counts, a hand on the purse.

    It keeps the defense out of a library's sight: no parameters, no modules, no state.

    Args:
        target: the door to the defense.
        access: what of its answers is shown.
        till: where the rows pay.
        name: the attack's, for sentences.
        shape: (C, H, W).
        hear: told of every answer.
    """

    def __init__(
        self,
        target: ModelAccess,
        access: Access,
        ledger: ExternalLedger,
        *,
        name: str,
        shape: tuple[int, ...],
        on_answer: AnswerCallback,
    ) -> None:
        super().__init__()
        self.training = False
        self._target, self._access, self._till = target, access, ledger
        self._name, self._shape, self._hear = name, shape, on_answer

    def train(self, mode: bool = True) -> ExternalModel:
        """The mode is the harness's affair: it stays eval."""
        return self

    @contextmanager
    def for_rows(self, rows: Tensor) -> Iterator[None]:
        """While this lasts, the images asked about are those of `rows` [b], each once."""
        if len(torch.unique(rows)) != len(rows):
            raise PluginError(f"{self._name} named a row twice; each image is of a row of its own.")
        before, self._till.rows = self._till.rows, rows.to(self._till.active.device)
        try:
            yield
        finally:
            self._till.rows = before

    def forward(self, images: Tensor) -> Tensor:
        """What the board shows of the defense's answer to [b, C, H, W]: [b, K]."""
        self._permit()
        rows, count, draws = self._owners(images), images.shape[0], self._target.draws
        pay = self._till.charge
        pay(rows, count, draws, 0)
        answer = self._answer(images)
        if answer.requires_grad:
            # The hook stays on the library's graph and goes with it.
            answer.register_hook(  # type: ignore[no-untyped-call]
                lambda _: pay(rows, count, 0, draws)
            )
        if self._hear(images.detach(), answer.detach(), rows):
            self._till.stop()
        logits = self._target.visible(answer)
        if self._access == Access.LABELS:
            return one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
        return logits

    def _permit(self) -> None:
        """PluginError where not even a label may be seen."""
        self._target.require(Access.LABELS)
        if self._access == Access.NOTHING:
            raise PluginError(
                f"{self._name} asked the model for an answer, but declares needs = Access.NOTHING; "
                "declare needs = Access.LABELS, or whatever else of the answer it is to be shown."
            )

    def _owners(self, images: Any) -> Tensor:
        """[b]: whose image each one is."""
        if not isinstance(images, Tensor) or images.dtype is not torch.float32:
            came = getattr(images, "dtype", type(images).__name__)
            raise PluginError(f"{self._name} asked with {came} images; float32 is expected.")
        if images.dim() != 4 or images.shape[1:] != self._shape:
            raise PluginError(
                f"{self._name} asked with images {list(images.shape)}; "
                f"[rows, {', '.join(map(str, self._shape))}] is expected."
            )
        rows = self._till.rows
        if self._till.count == 1:
            return rows.expand(images.shape[0])
        if images.shape[0] != rows.shape[0]:
            raise PluginError(
                f"{self._name} asked about {len(images)} images of {len(rows)} rows, and "
                "nobody can tell whose they are; say so with model.for_rows(rows), or set rows = 1."
            )
        return rows

    def _answer(self, images: Tensor) -> Tensor:
        """Whole answers, the mean over the declared draws; a graph where gradients are given."""
        if self._access < Access.GRADIENTS:
            images = images.detach()
        if self._target.draws == 1:
            return self._draw(images)
        return torch.stack([self._draw(images) for _ in range(self._target.draws)]).mean(0)

    def _draw(self, images: Tensor) -> Tensor:
        target = self._target
        if not target.has_bpda or not images.requires_grad or not torch.is_grad_enabled():
            return self._call(target.module, images)
        # The defense's own answer, on the stand-in's slope (arXiv:1802.00420).
        with torch.no_grad():
            own = self._call(target.module, images)
        slope = self._call(target.gradient_module, images)
        return own + (slope - slope.detach())

    def _call(self, module: nn.Module, images: Tensor) -> Tensor:
        noise = self._target.noise
        if noise is None:
            return checked_logits(module(images), len(images))
        with noise.scope():
            return checked_logits(module(images), len(images))


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """A library by itself: its generators seeded, and all it shares with others put back.

    These are the global generators of torch, numpy and python, the filters of warnings, and
    standard output, which is for data: what a library prints goes to standard error.
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
