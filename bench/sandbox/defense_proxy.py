"""A defense behind the walls as an ordinary module: images cross, and logits and slopes return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.core.cells import COSTLY_FORWARDS
from bench.core.errors import PluginError
from bench.sandbox.process import SandboxProcess
from bench.sandbox.protocol import Frame, encode_tensors

WIDEST = 1 << 16  # bytes of an image's logits at most


class DefenseProxy(nn.Module):
    """Asks a worker. One that has ended is replaced by another at the next question."""

    def __init__(self, who: str, made: Callable[[], SandboxProcess], forwards: int = 1) -> None:
        """`made` starts a worker that holds the built defense; `who` it is, for sentences.

        Answers that take many `forwards` of the network may take their time.
        """
        super().__init__()
        self.who, self.made = who, made
        self.patience = max(1.0, forwards / COSTLY_FORWARDS)
        self.cage = made()
        self.kept = 0
        """So many answers were kept."""
        self.stands = 0
        """Which of them the worker still has; 0 for none."""

    def forward(self, images: Tensor) -> Tensor:
        """[n, C, H, W] to logits [n, K]."""
        if images.requires_grad and torch.is_grad_enabled():
            logits: Tensor = _Crossing.apply(images, self)
            return logits
        return self.answer(images, torch.get_rng_state(), keep=False)

    def answer(self, images: Tensor, state: Tensor, *, keep: bool) -> Tensor:
        """Logits, drawn from a `state` of torch's generator; with `keep` their slope can be asked.

        Where something was drawn this process's own generator moves on, too.
        """
        if not self.cage.alive:
            self.cage, self.stands = self.made(), 0
        given = {"state": state, "images": images}
        frame = self._ask({"do": "forward", "keep": keep}, given, WIDEST * len(images))
        self.kept += keep
        self.stands = self.kept if keep else 0
        if frame.words.get("drew") is True:
            torch.rand(1)
        return self._tensor(frame, "logits").to(images.device)

    def climb(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient [n, C, H, W] of the last kept answer, weighted [n, K]."""
        frame = self._ask({"do": "climb"}, {"weight": weight}, shape.numel() * 8)
        found = self._tensor(frame, "slope")
        if found.shape != shape:
            raise PluginError(f"{self.who} gave slopes {list(found.shape)} for {list(shape)}.")
        return found.to(weight.device)

    def _ask(self, words: dict[str, Any], given: dict[str, Tensor], largest: int) -> Frame:
        told, parts = encode_tensors(given)
        seconds = self.cage.limits.call * self.patience
        words |= {"tensors": told}
        return self.cage.ask(self.who, words, *parts, seconds=seconds, largest=largest)

    def _tensor(self, frame: Frame, name: str) -> Tensor:
        return self.cage.tensors(self.who, frame, name)[name]


class _Crossing(torch.autograd.Function):
    """Forward on the other side of the wall, and backward there, too."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, remote: DefenseProxy) -> Tensor:
        ctx.remote, ctx.state = remote, torch.get_rng_state()
        ctx.save_for_backward(images)
        logits = remote.answer(images, ctx.state, keep=True)
        ctx.stands = remote.stands
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        remote: DefenseProxy = ctx.remote
        (images,) = ctx.saved_tensors
        if remote.stands != ctx.stands or not remote.cage.alive:
            # Another question came between: the same one again, from the same draws.
            with torch.random.fork_rng([]):
                remote.answer(images, ctx.state, keep=True)
            ctx.stands = remote.stands
        return remote.climb(weight, images.shape).to(images.dtype), None
