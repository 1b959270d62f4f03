"""A sandboxed defense as an nn.Module: images are sent to a worker, logits and gradients return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.core.cells import COSTLY_FORWARDS
from bench.core.errors import PluginError
from bench.plugin import AnswerWork
from bench.sandbox.process import StartProcess, printable
from bench.sandbox.protocol import Frame, encode_tensors

MAX_LOGIT_BYTES = 1 << 16  # per image
MAX_WORK = 1 << 31  # passes of one answer


class DefenseProxy(nn.Module):
    """Evaluates a model in a worker process; a process that has ended is replaced."""

    def __init__(self, title: str, start: StartProcess, forwards: int = 1) -> None:
        """Start the worker process.

        Args:
            title: names the submission in messages.
            start: starts a worker process with the built model.
            forwards: passes of the network per image; many of them raise the time limit, at
                most to `longest_call`.
        """
        super().__init__()
        self.title, self.start = title, start
        self.time_factor = max(1.0, forwards / COSTLY_FORWARDS)
        self.process = start()
        self.graphs = 0
        """Evaluations with a graph so far."""
        self.current_graph = 0
        """Number of the evaluation whose graph the worker holds; 0 for none."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, K] of images [n, C, H, W]."""
        if images.requires_grad and torch.is_grad_enabled():
            logits: Tensor = _RemoteForward.apply(images, self)
            return logits
        return self.evaluate(images, torch.get_rng_state(), keep=False)

    def evaluate(self, images: Tensor, state: Tensor, *, keep: bool) -> Tensor:
        """Logits [n, K] of images [n, C, H, W] from a `state` [m] of torch's generator.

        With `keep` the worker keeps the graph for `gradient`. Where the model has drawn random
        numbers, the generator of this process advances, too.
        """
        if not self.process.alive:
            self.process, self.current_graph = self.start(), 0
        sent = {"state": state, "images": images}
        size = MAX_LOGIT_BYTES * len(images)
        frame = self._call({"method": "forward", "keep": keep}, sent, size)
        self.graphs += keep
        self.current_graph = self.graphs if keep else 0
        if frame.header.get("drew") is True:
            torch.rand(1)
        return self._tensor(frame, "logits").to(images.device)

    def gradient(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient [n, C, H, W] of the logits of the current graph, weighted with [n, K].

        Raises PluginError where the worker sends another shape.
        """
        frame = self._call({"method": "backward"}, {"weight": weight}, shape.numel() * 8)
        found = self._tensor(frame, "gradient")
        if found.shape != shape:
            raise PluginError(
                f"{self.title} returned a gradient {list(found.shape)} for images {list(shape)}."
            )
        return found.to(weight.device)

    def answer_work(self, images: Tensor) -> AnswerWork:
        """What the model computes for one answer to images [n, C, H, W], as the worker counts it.

        Raises PluginError where it sends something else.
        """
        if not self.process.alive:
            self.process = self.start()
        self.current_graph = 0
        frame = self._call(
            {"method": "answer work"}, {"state": torch.get_rng_state(), "images": images}, 0
        )
        return parsed_work(self.title, frame)

    def _call(self, header: dict[str, Any], sent: dict[str, Tensor], largest: int) -> Frame:
        descriptions, parts = encode_tensors(sent)
        limits = self.process.limits
        seconds = min(limits.call * self.time_factor, max(limits.call, limits.longest_call))
        rate = len(next(reversed(sent.values()))) / seconds
        return self.process.call(
            self.title, header | {"tensors": descriptions}, *parts, seconds=seconds,
            largest=largest, remedy=f"make it faster, at least {rate:.2g} images/s are needed",
        )  # fmt: skip

    def _tensor(self, frame: Frame, name: str) -> Tensor:
        return self.process.tensors(self.title, frame, name)[name]


def parsed_work(title: str, frame: Frame) -> AnswerWork:
    """The work of an answer in a worker's reply; raises PluginError where it is none."""
    found = frame.header.get("work")
    fields = AnswerWork._fields
    if (
        not isinstance(found, dict)
        or set(found) != set(fields)
        or not all(type(value) is int and 0 <= value < MAX_WORK for value in found.values())
    ):
        raise PluginError(
            f"{title} violated the sandbox protocol: work {printable(found)} was sent; numbers "
            f"{list(fields)} from 0 to {MAX_WORK - 1} were expected."
        )
    return AnswerWork(**found)


class _RemoteForward(torch.autograd.Function):
    """Forward and backward pass in the worker."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, proxy: DefenseProxy) -> Tensor:
        """Logits [n, K] of images [n, C, H, W]; the worker keeps the graph."""
        ctx.proxy, ctx.state = proxy, torch.get_rng_state()
        ctx.save_for_backward(images)
        logits = proxy.evaluate(images, ctx.state, keep=True)
        ctx.graph = proxy.current_graph
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        """Gradient [n, C, H, W] of the logits, weighted with [n, K]."""
        proxy: DefenseProxy = ctx.proxy
        (images,) = ctx.saved_tensors
        if proxy.current_graph != ctx.graph or not proxy.process.alive:
            # Another evaluation replaced the graph: repeat this one with the same random numbers.
            with torch.random.fork_rng([]):
                proxy.evaluate(images, ctx.state, keep=True)
            ctx.graph = proxy.current_graph
        return proxy.gradient(weight, images.shape).to(images.dtype), None
