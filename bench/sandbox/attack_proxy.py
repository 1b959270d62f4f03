"""A sandboxed attack as the engine runs it: its state is sent to a worker and comes back."""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bench.core.errors import PluginError, require_type
from bench.engine.attack_view import AttackView
from bench.engine.problem import BatchProblem
from bench.plugin import Problem, State, StopRule
from bench.plugin.losses import Loss
from bench.sandbox.declarations import AttackDeclarations
from bench.sandbox.process import (
    Exchange,
    Message,
    RequestHandler,
    SandboxProcess,
    StartProcess,
    printable,
)
from bench.sandbox.protocol import Frame, encode_tensors
from bench.sandbox.set_codec import encode_set
from bench.threats.access import Access

BATCHES_PER_FRAME = 64  # a frame of an attack may hold so many batches of images in float64
MAX_RESTARTS = 10_000  # per example
SENT_ROWS = ("x", "y", "target", "t", "restart", "active", "key")
"""Tensors of the problem that an attack receives: no example indices, nothing of the defense."""

ARGUMENTS = {
    "adv": (None, torch.float32), "where": (1, torch.bool), "classes": (2, torch.int64),
    "minus": (1, torch.int64),
}  # fmt: skip
"""Number of dimensions and dtype of the arguments of a query; `adv` has those of the points."""
REQUIRED_ARGUMENTS = {
    "gradient": {"adv"}, "jacobian": {"adv", "classes"}, "logits": {"adv"}, "labels": {"adv"},
}  # fmt: skip

PROXY_METHODS = {
    "done": "_rows_done", "stays": "_rows_unchanged", "restart_count": "_number_of_restarts",
}  # fmt: skip
"""Optional method of an attack -> the method of AttackProxy that calls it in the worker."""

EvaluateLoss: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Loss [n] of logits [n, K] and labels [n], and its gradient [n, K]."""


class SingleProcess:
    """Keeps at most one process running: starting another one ends it."""

    def __init__(self) -> None:
        self.current: weakref.ref[SandboxProcess] | None = None
        """Weak, so that the process ends with the attack that uses it."""

    def close(self) -> None:
        """End the current process, if there is one."""
        process = self.current() if self.current else None
        if process is not None:
            process.close()

    def start(self, start: StartProcess) -> SandboxProcess:
        """End the current process and start another."""
        self.close()
        process = start()
        self.current = weakref.ref(process)
        return process


class DeclaredAttack:
    """The declared attributes of a sandboxed attack, and its worker process."""

    def __init__(
        self, name: str, declared: AttackDeclarations, start: StartProcess, single: SingleProcess
    ) -> None:
        """`start` starts a worker with the attack; of the attacks with one `single` one has one."""
        self.name = name
        self.needs = Access[declared.needs]
        self.stop_rule, self.minimises = StopRule(declared.stop_rule), declared.minimises
        self.cite, self.summary, self.source = declared.cite, declared.summary, declared.source
        self.norms, self.goals = tuple(declared.norms), tuple(declared.goals)
        self.coordinates = declared.coordinates
        self.written_for = tuple(declared.written_for)
        self.joint, self.samples = declared.joint, declared.samples
        self.eot_draws, self.examples = declared.eot_draws, declared.examples
        self.title = f"submission {name}"
        self.parameters, self.start_process, self.single = declared.parameters, start, single
        self.process: SandboxProcess | None = None
        self.sent: dict[str, Tensor] = {}
        """Copies of the rows' tensors as the worker has them."""

    def resolved_elsewhere(self) -> Mapping[str, Any]:
        """The attack's parameters, as its worker declared them."""
        return self.parameters

    def live_process(self) -> SandboxProcess:
        """The worker process; a new one where it has ended."""
        if self.process is None or not self.process.alive:
            self.process, self.sent = self.single.start(self.start_process), {}
        return self.process


class AttackProxy(DeclaredAttack):
    """Runs an attack in a worker process; its queries are answered by the engine's Problem."""

    def __init__(
        self, name: str, declared: AttackDeclarations, start: StartProcess, single: SingleProcess
    ) -> None:
        super().__init__(name, declared, start, single)
        self.steps = declared.steps
        for method in declared.methods:
            setattr(self, method, getattr(self, PROXY_METHODS[method]))

    def start(self, problem: Problem) -> State:
        """The initial state of new rows."""
        return self._next_state("start", problem, {})

    def step(self, problem: Problem, state: State) -> State:
        """The next state of all rows."""
        return self._next_state("step", problem, state_tensors("state ", state))

    def _rows_done(self, state: State) -> Tensor:
        return self._mask("done", state_tensors("state ", state))

    def _rows_unchanged(self, before: State, after: State) -> Tensor:
        tensors = state_tensors("before ", before) | state_tensors("after ", after)
        return self._mask("stays", tensors)

    def _number_of_restarts(self, classes: int) -> int:
        frame = self._call({"method": "restart_count", "classes": classes}, {}, 0)
        found = frame.header.get("restart_count")
        if type(found) is not int or found > MAX_RESTARTS:
            raise PluginError(
                f"{self.title} returned {printable(found)} restarts; an integer of at most "
                f"{MAX_RESTARTS} was expected."
            )
        return found

    def _mask(self, method: str, tensors: Mapping[str, Tensor]) -> Tensor:
        first = next(iter(tensors.values()))
        frame = self._call({"method": method}, tensors, len(first))
        found = self.live_process().tensors(self.title, frame, "rows")["rows"]
        if found.shape != first.shape[:1] or found.dtype is not torch.bool:
            raise PluginError(
                f"{self.title} returned {found.dtype} {list(found.shape)} from {method}; "
                f"bool [{len(first)}] was expected."
            )
        return found.to(first.device)

    def _next_state(self, method: str, problem: Problem, state: dict[str, Tensor]) -> State:
        seen = problem.rows if isinstance(problem, AttackView) else problem
        rows = require_type(seen, BatchProblem, "the problem")
        header = {
            "method": method, "name": self.name, "classes": rows.classes,
            "set": encode_set(rows.ball, self.title), "goal": [rows.goal.kind, rows.goal.rule],
        }  # fmt: skip
        tensors = self._changed_rows(rows) | state
        largest = BATCHES_PER_FRAME * 8 * rows.x.numel()
        return self._state(rows, self._call(header, tensors, largest, QueryServer(self, rows)))

    def _changed_rows(self, rows: BatchProblem) -> dict[str, Tensor]:
        """The tensors of the rows that the worker does not have; images rarely change."""
        self.live_process()
        changed: dict[str, Tensor] = {}
        for name in SENT_ROWS:
            value: Tensor = getattr(rows, name)
            before = self.sent.get(name)
            if before is None or not torch.equal(before, value):
                changed[name] = value
                self.sent[name] = value.clone()
        return changed

    def _state(self, problem: BatchProblem, frame: Frame) -> State:
        """The state in a reply: a tensor, or fields of which the first is the image."""
        found = self.live_process().tensors(self.title, frame)
        names, parts = tuple(found), list(found.values())
        rows = [tuple(part.shape[:1]) for part in parts]
        if not parts or set(rows) != {(len(problem.x),)}:
            raise PluginError(
                f"{self.title} returned a state of {printable(rows)} rows; "
                f"{len(problem.x)} were expected."
            )
        parts = [part.to(problem.x.device) for part in parts]
        return parts[0] if frame.header.get("single") is True else self._named(names, parts)

    def _named(self, names: tuple[str, ...], parts: Sequence[Tensor]) -> State:
        """The state of fields with these names."""
        try:
            return state_type(names)(*parts)
        except (ValueError, SyntaxError) as error:  # two names may be one after normalisation
            raise PluginError(
                f"{self.title} returned a state with invalid field names: {error}."
            ) from error

    def _call(
        self, header: Mapping[str, Any], tensors: Mapping[str, Tensor], largest: int,
        handler: RequestHandler | None = None,
    ) -> Frame:  # fmt: skip
        descriptions, parts = encode_tensors(tensors)
        process = self.live_process()
        return process.call(
            self.title, {**header, "tensors": descriptions}, *parts,
            seconds=process.limits.call, largest=largest, handler=handler,
        )  # fmt: skip


class QueryServer:
    """Answers the queries of one step with the engine's Problem."""

    def __init__(self, attack: AttackProxy, problem: BatchProblem) -> None:
        self.attack, self.problem = attack, problem

    def __call__(self, frame: Frame, exchange: Exchange) -> Message:
        """The answer to one query. Raises PluginError where it or an argument is not valid."""
        query, problem, given = frame.header.get("request"), self.problem, self._arguments(frame)
        if query == "clean":
            return tensor_message({"clean": problem.clean_logits})
        required = REQUIRED_ARGUMENTS.get(str(query))
        if required is None or not required <= given.keys():
            raise PluginError(
                f"{self.attack.title} sent an invalid query: {printable((query, list(given)))}."
            )
        adv, where = given["adv"], given.get("where")
        if query == "gradient":
            return tensor_message(problem.gradient(adv, self._loss(exchange), where)._asdict())
        if query == "jacobian":
            answer = problem.jacobian(adv, given["classes"], where, minus=given.get("minus"))
            return tensor_message(answer._asdict())
        method = problem.logits if query == "logits" else problem.labels
        return tensor_message({str(query): method(adv, where)})

    def _arguments(self, frame: Frame) -> dict[str, Tensor]:
        x, classes = self.problem.x, self.problem.classes
        points = self.problem.ball.start(x).shape
        found = self.attack.live_process().tensors(self.attack.title, frame)
        for name, part in found.items():
            dims, dtype = ARGUMENTS.get(name, (0, None))
            fits = part.dtype is dtype and part.shape[:1] == x.shape[:1]
            fits = fits and (part.shape == points if name == "adv" else part.dim() == dims)
            if fits and dtype is torch.int64:
                fits = part.numel() > 0 and 0 <= int(part.min()) <= int(part.max()) < classes
            if not fits:
                raise PluginError(
                    f"{self.attack.title} sent a query with {printable(name)} of {part.dtype} "
                    f"{list(part.shape)}, which does not fit {len(x)} images of {classes} classes."
                )
        return {name: part.to(x.device) for name, part in found.items()}

    def _loss(self, exchange: Exchange) -> Loss:
        """The attack's loss of logits; the worker sends its values and their gradient."""
        evaluate = functools.partial(self._loss_and_gradient, exchange)
        return lambda logits, label: _RemoteLoss.apply(logits, label, evaluate)

    def _loss_and_gradient(
        self, exchange: Exchange, logits: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss [n] of logits [n, K] and labels [n], and its gradient [n, K]."""
        title = self.attack.title
        header, parts = tensor_message({"logits": logits, "label": label})
        frame = exchange(({"request": "loss", **header}, parts))
        if "error" in frame.header:
            raise PluginError(f"{title} failed: {printable(frame.header['error'])}.")
        found = self.attack.live_process().tensors(title, frame, "loss", "gradient")
        value, gradient = (part.to(logits.device) for part in found.values())
        if value.shape != logits.shape[:1] or gradient.shape != logits.shape:
            raise PluginError(
                f"{title} returned a loss {list(value.shape)} of logits {list(logits.shape)}; "
                "one number per row was expected."
            )
        return value, gradient


class _RemoteLoss(torch.autograd.Function):
    """A loss whose value and gradient the worker computes together."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, evaluate: EvaluateLoss) -> Tensor:
        """Loss [n] of logits [n, K] and labels [n]."""
        value, gradient = evaluate(logits.detach(), label)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        """Gradient [n, K] of the loss, weighted with [n]."""
        (gradient,) = ctx.saved_tensors
        return weight[:, None] * gradient, None, None


@functools.lru_cache(maxsize=64)
def state_type(names: tuple[str, ...]) -> Any:
    """The named tuple type of a state with these fields.

    Raises ValueError where a field name is not valid.
    """
    return collections.namedtuple("SandboxedState", names)


def state_tensors(prefix: str, state: State) -> dict[str, Tensor]:
    """The tensors [n, ...] of a state, named by prefix and position."""
    parts: Sequence[Tensor] = [state] if isinstance(state, Tensor) else state
    return {f"{prefix}{position}": part for position, part in enumerate(parts)}


def tensor_message(tensors: Mapping[str, Tensor]) -> Message:
    """A message of tensors [*shape] alone."""
    descriptions, parts = encode_tensors(tensors)
    return {"tensors": descriptions}, parts
