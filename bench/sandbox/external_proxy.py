"""A sandboxed external attack: its `run` is called in a worker, its queries are answered here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.core.errors import PluginError, require_type
from bench.engine.external_model import AttackStopped
from bench.engine.external_run import ExternalRows
from bench.plugin import ExternalProblem
from bench.sandbox.attack_proxy import (
    BATCHES_PER_FRAME,
    DeclaredAttack,
    SingleProcess,
    tensor_message,
)
from bench.sandbox.declarations import AttackDeclarations
from bench.sandbox.process import Exchange, Message, StartProcess, printable
from bench.sandbox.protocol import Frame, encode_tensors
from bench.sandbox.set_codec import encode_set

FRAME_ROWS = 64  # a query of one example may hold as many images as one of so many examples
MAX_GRAPHS = 256
"""Answers whose graph an attack may keep at once."""
STOPPED: Message = ({"stopped": True, "tensors": {}}, [])


class ExternalAttackProxy(DeclaredAttack):
    """Runs an external attack in a worker process; its queries are answered by the engine."""

    def __init__(
        self, name: str, declared: AttackDeclarations, start: StartProcess, single: SingleProcess
    ) -> None:
        super().__init__(name, declared, start, single)
        self.rows = declared.rows

    def run(self, problem: ExternalProblem) -> Tensor:
        """The candidates [n, C, H, W] of a batch.

        Raises PluginError where the attack fails or queries what it may not, AttackStopped where
        the engine has ended its run.
        """
        rows = require_type(problem, ExternalRows, "the problem")
        header = {
            "method": "run", "set": encode_set(rows.ball, self.title), "classes": rows.classes,
            "budget": [rows.budget.gradients, rows.budget.queries], "seed": rows.seed,
        }  # fmt: skip
        sent = {"x": rows.x, "y": rows.y, "target": rows.target, "key": rows.draws.key}
        descriptions, parts = encode_tensors(sent)
        process = self.live_process()
        frame = process.call(
            self.title, {**header, "tensors": descriptions}, *parts,
            seconds=process.limits.call * len(rows.x),
            largest=BATCHES_PER_FRAME * 8 * rows.x[0].numel() * max(len(rows.x), FRAME_ROWS),
            handler=ModelServer(self, rows),
        )  # fmt: skip
        if frame.header.get("stopped") is True:
            raise AttackStopped
        images = process.tensors(self.title, frame, "images")["images"]
        return images.to(rows.x.device)


class ModelServer:
    """Answers the queries of one run with the engine's counted model."""

    def __init__(self, attack: ExternalAttackProxy, rows: ExternalRows) -> None:
        self.attack, self.rows = attack, rows
        self.graphs: dict[int, tuple[Tensor, Tensor]] = {}
        """Number of an answer -> images [b, C, H, W] and logits [b, K] with their graph."""
        self.number = 0
        """Number of the last answer with a graph."""

    def __call__(self, frame: Frame, exchange: Exchange) -> Message:
        """The answer to one query; STOPPED where the engine has ended the run.

        Raises PluginError where the query is not valid.
        """
        query = frame.header.get("request")
        sent = self.attack.live_process().tensors(self.attack.title, frame)
        try:
            if query == "forward" and "images" in sent:
                return self._forward(frame.header, sent)
            if query == "backward" and list(sent) == ["weight"]:
                return self._backward(frame.header.get("graph"), sent["weight"])
        except AttackStopped:
            return STOPPED
        raise self._invalid((query, list(sent)))

    def _forward(self, header: dict[str, Any], sent: dict[str, Tensor]) -> Message:
        """Logits [b, K] of images [b, C, H, W], and the number of their graph, 0 for none."""
        self._release(header.get("released"))
        wanted = header.get("wanted") is True
        images = sent["images"].to(self.rows.x.device)
        leaf = images.requires_grad_(wanted and images.is_floating_point())
        with torch.set_grad_enabled(wanted or header.get("enabled") is True):
            logits = self._logits(leaf, sent.get("rows"))
        number = 0
        if wanted and logits.requires_grad:
            number = self.number = self.number + 1
            self.graphs[number] = (leaf, logits)
        answer, parts = tensor_message({"logits": logits})
        return {**answer, "graph": number}, parts

    def _logits(self, images: Tensor, rows: Tensor | None) -> Tensor:
        """Logits [b, K] of images [b, C, H, W] that belong to `rows` [b] int64, if there are."""
        if rows is None:
            return self.rows.model(images)
        inside = rows.dtype is torch.int64 and rows.dim() == 1 and rows.numel() > 0
        if not inside or int(rows.min()) < 0 or int(rows.max()) >= len(self.rows.x):
            raise self._invalid(("rows", str(rows.dtype), list(rows.shape)))
        with self.rows.model.for_rows(rows):
            return self.rows.model(images)

    def _release(self, numbers: object) -> None:
        """Forget the graphs that the worker no longer has."""
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise self._invalid(("released", numbers))
        for number in numbers:
            self.graphs.pop(number, None)
        if len(self.graphs) >= MAX_GRAPHS:
            raise PluginError(
                f"{self.attack.title} keeps the graphs of {MAX_GRAPHS} answers; call backward or "
                "use torch.no_grad() before it queries more."
            )

    def _backward(self, number: object, weight: Tensor) -> Message:
        """The gradient [b, C, H, W] of an answer, weighted with [b, K]."""
        known = self.graphs.get(number) if type(number) is int else None
        if known is None or known[1].shape != weight.shape or known[1].dtype is not weight.dtype:
            raise self._invalid(("backward", number, list(weight.shape)))
        images, logits = known
        (gradient,) = torch.autograd.grad(
            logits, images, weight.to(logits.device), retain_graph=True, allow_unused=True
        )
        return tensor_message(
            {"gradient": torch.zeros_like(images) if gradient is None else gradient}
        )

    def _invalid(self, what: object) -> PluginError:
        return PluginError(f"{self.attack.title} sent an invalid query: {printable(what)}.")
