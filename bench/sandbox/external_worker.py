"""The worker's side of a sandboxed external attack: calls its `run` on a remote model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.engine.external_model import AttackStopped, isolated_random_state
from bench.engine.external_run import ExternalRows
from bench.plugin import ExternalAttack
from bench.sandbox.channel import WorkerChannel, frame_tensors
from bench.sandbox.protocol import Frame
from bench.sandbox.set_codec import decode_set
from bench.threats.access import Budget
from bench.threats.random_numbers import KeyedRandomNumbers


def run_remotely(channel: WorkerChannel, attack: ExternalAttack, frame: Frame) -> None:
    """Send the candidates of one run, or that it was stopped.

    Raises TypeError where the attack returns no tensor.
    """
    header, sent = frame.header, frame_tensors(frame)
    key = sent["key"]
    problem = ExternalRows(
        sent["x"], sent["y"], sent["target"], decode_set(header["set"]), header["classes"],
        Budget(*header["budget"]), RemoteModel(channel),
        KeyedRandomNumbers(key, torch.zeros_like(key)),
    )  # fmt: skip
    try:
        with isolated_random_state(header["seed"]):
            images = attack.run(problem)
    except AttackStopped:
        channel.reply({"stopped": True})
        return
    if not isinstance(images, Tensor):
        raise TypeError(f"run returned {type(images).__name__}; a tensor of images was expected")
    channel.reply({}, {"images": images})


class Graph:
    """The number of a graph that the harness keeps while this object lives."""

    def __init__(self, number: int, released: list[int]) -> None:
        self.number = number
        weakref.finalize(self, released.append, number).atexit = False


class RemoteModel(nn.Module):
    """The Model of `bench.plugin` in a worker: sends every query to the harness."""

    def __init__(self, channel: WorkerChannel) -> None:
        super().__init__()
        self.training = False
        self._channel = channel
        self._rows: Tensor | None = None
        self._released: list[int] = []
        """Numbers of graphs that no tensor needs any more."""

    def train(self, mode: bool = True) -> RemoteModel:
        """Has no effect: the model stays in eval mode."""
        return self

    @contextmanager
    def for_rows(self, rows: Tensor) -> Iterator[None]:
        """Context in which the queried images belong to the rows `rows` [b] int64."""
        before, self._rows = self._rows, rows.clone()
        try:
            yield
        finally:
            self._rows = before

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, K] of images [b, C, H, W], with a graph where access allows.

        Raises TypeError where the images are no tensor.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"it queried a {type(images).__name__}; a tensor was expected")
        if images.requires_grad and torch.is_grad_enabled():
            logits: Tensor = _RemoteQuery.apply(images, self)
            return logits
        return self.query(images, wanted=False)[0]

    def query(self, images: Tensor, *, wanted: bool) -> tuple[Tensor, int]:
        """Logits [b, K] of images [b, C, H, W] and, if `wanted`, the number of their graph."""
        header = {
            "request": "forward", "wanted": wanted, "enabled": torch.is_grad_enabled(),
            "released": self._released[:],
        }  # fmt: skip
        self._released.clear()
        rows = {} if self._rows is None else {"rows": self._rows}
        frame = self._answer(header, {"images": images, **rows})
        return frame_tensors(frame)["logits"], frame.header["graph"]

    def gradient(self, number: int, weight: Tensor) -> Tensor:
        """The gradient [b, C, H, W] of the answer of this number, weighted with [b, K]."""
        frame = self._answer({"request": "backward", "graph": number}, {"weight": weight})
        return frame_tensors(frame)["gradient"]

    def _answer(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> Frame:
        """The harness's answer; raises AttackStopped where it has ended the run."""
        frame = self._channel.request(header, tensors)
        if "stopped" in frame.header:
            raise AttackStopped
        return frame


class _RemoteQuery(torch.autograd.Function):
    """One query whose gradient the harness computes."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: RemoteModel) -> Tensor:
        """Logits [b, K] of images [b, C, H, W]; the harness keeps their graph."""
        logits, number = model.query(images, wanted=True)
        ctx.model = model
        ctx.graph = Graph(number, model._released) if number else None
        if not number:
            ctx.mark_non_differentiable(logits)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        """Gradient [b, C, H, W] of the logits, weighted with [b, K]."""
        return ctx.model.gradient(ctx.graph.number, weight), None
