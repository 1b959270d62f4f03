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

from bench.records import Access, PluginError
from bench.target import Ledger, Target, checked

Hear = Callable[[Tensor, Tensor, Tensor], bool]
"""(images [b, C, H, W], logits [b, K], the row of each [b]): hears every answer; True ends it."""


class Stopped(BaseException):
    """Ends a library's run from within: its budget is spent, or nothing is left to win.

    No `except Exception` inside the library swallows it.
    """


class Guard(nn.Module):
    """A defense behind glass: eval mode, no parameter to touch, exact counts, a hand on the purse.

    It holds the defense out of a library's sight: no parameters, no modules, no state.

    Args:
        target: the door to the defense.
        access: what of its answers is shown.
        ledger: [n] purses, one a row; inactive rows answer and pay nothing.
        active: [n] bool.
        name: the attack's, for sentences.
        hear: told of every answer.
    """

    def __init__(
        self,
        target: Target,
        access: Access,
        ledger: Ledger,
        active: Tensor,
        *,
        name: str,
        shape: tuple[int, ...],
        hear: Hear,
    ) -> None:
        super().__init__()
        self.training = False
        self.forwards = 0
        """Rows that went through the defense, those of inactive rows included."""
        self.backwards = 0
        self._target, self._access, self._ledger = target, access, ledger
        self._active, self._name, self._shape, self._hear = active, name, shape, hear
        self._open = True
        self._rows = self._all = torch.arange(len(active), device=active.device)

    def train(self, mode: bool = True) -> Guard:
        """The mode is the harness's affair: it stays eval."""
        return self

    def close(self) -> None:
        """The run is over: whoever asks from now on is stopped."""
        self._open = False

    def _stop(self) -> NoReturn:
        self.close()
        raise Stopped

    @contextmanager
    def about(self, rows: Tensor) -> Iterator[None]:
        """While this lasts, the images asked about are those of `rows` [b], each once."""
        if len(torch.unique(rows)) != len(rows):
            raise PluginError(f"{self._name} named a row twice; each image is of a row of its own.")
        before, self._rows = self._rows, rows.to(self._active.device)
        try:
            yield
        finally:
            self._rows = before

    def forward(self, images: Tensor) -> Tensor:
        """What the board shows of the defense's answer to [b, C, H, W]: [b, K]."""
        rows = self._owners(images)
        self._pay(rows, self._target.draws, 0)
        logits = self._answer(images)
        if logits.requires_grad:
            # The hook stays on the library's graph and goes with it.
            logits.register_hook(  # type: ignore[no-untyped-call]
                lambda _: self._pay(rows, 0, self._target.draws)
            )
        if self._hear(images.detach(), logits.detach(), rows):
            self._stop()
        if self._access == Access.LABELS:
            return one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
        return logits

    def _owners(self, images: Any) -> Tensor:
        """[b]: whose image each one is."""
        if not isinstance(images, Tensor) or images.dtype is not torch.float32:
            came = getattr(images, "dtype", type(images).__name__)
            raise PluginError(f"{self._name} asked with {came} images; float32 is expected.")
        if images.dim() != 4 or tuple(images.shape[1:]) != self._shape:
            raise PluginError(
                f"{self._name} asked with images {list(images.shape)}; "
                f"[rows, {', '.join(map(str, self._shape))}] is expected."
            )
        if len(self._all) == 1:
            return self._all.expand(len(images))
        if len(images) != len(self._rows):
            raise PluginError(
                f"{self._name} asked about {len(images)} images of {len(self._rows)} rows, and "
                "nobody can tell whose they are; say so with model.about(rows), or set rows = 1."
            )
        return self._rows

    def _pay(self, rows: Tensor, forwards: int, gradients: int) -> None:
        """Charge each image to its row; Stopped where one cannot pay."""
        if not self._open:
            self._stop()
        where = self._active
        if len(self._all) == 1:
            forwards, gradients = forwards * len(rows), gradients * len(rows)
        elif rows is not self._all:
            where = torch.zeros_like(where).index_fill(0, rows, True) & where
        self._ledger.charge(where, forwards, gradients)
        if self._ledger.limited and self._ledger.refused.any():
            self._stop()
        images = 1 if len(self._all) == 1 else len(rows)
        self.forwards += forwards * images
        self.backwards += gradients * images

    def _answer(self, images: Tensor) -> Tensor:
        """[b, K], the mean over the declared draws; a graph where gradients are given."""
        graph = self._access == Access.GRADIENTS and torch.is_grad_enabled()
        with torch.set_grad_enabled(graph):
            draws = [self._draw(images) for _ in range(self._target.draws)]
            return draws[0] if len(draws) == 1 else torch.stack(draws).mean(0)

    def _draw(self, images: Tensor) -> Tensor:
        target = self._target
        if not target.has_stand_in or not images.requires_grad or not torch.is_grad_enabled():
            return self._call(target.module, images)
        # The defense's own answer, on the stand-in's slope (arXiv:1802.00420).
        with torch.no_grad():
            own = self._call(target.module, images)
        slope = self._call(target.slope, images)
        return own + (slope - slope.detach())

    def _call(self, module: nn.Module, images: Tensor) -> Tensor:
        noise = self._target.noise
        if noise is None:
            return checked(module(images), len(images))
        with noise.scope():
            return checked(module(images), len(images))


@contextmanager
def apart(seed: int) -> Iterator[None]:
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
