"""An attack behind the walls as the engine plays it: its state comes and goes."""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core.errors import PluginError, require_type
from bench.engine.problem import BatchProblem
from bench.plugin import Problem, State, StopRule
from bench.plugin.losses import Loss
from bench.sandbox.declarations import AttackDeclarations
from bench.sandbox.norm_codec import encode_set
from bench.sandbox.process import Consult, Reply, SandboxProcess, printable
from bench.sandbox.protocol import Frame, encode_tensors
from bench.threats.access import Access

ROOM = 64  # as many images as there are may a frame of an attack hold, in float64
SEEN = ("x", "y", "target", "t", "restart", "active", "key")
"""What an attack is told of its rows: no names of examples, and nothing of the defense."""

SHAPES = {
    "adv": (4, torch.float32), "where": (1, torch.bool), "classes": (2, torch.int64),
    "minus": (1, torch.int64),
}  # fmt: skip
"""What comes with a question: its dimensions, and its numbers."""
NEEDS = {
    "gradient": {"adv"}, "jacobian": {"adv", "classes"}, "logits": {"adv"}, "labels": {"adv"},
}  # fmt: skip
"""What must come with it."""

METHODS = {"done": "_converged", "stays": "_unmoved", "restart_count": "_restarts"}
"""What an attack may have, and who asks its worker for it."""


class AttackProxy:
    """Start and step in a worker; its questions are asked here, of the Problem that is at play."""

    at_play: ClassVar[weakref.ref[AttackProxy] | None] = None

    def __init__(
        self, name: str, facts: AttackDeclarations, made: Callable[[], SandboxProcess]
    ) -> None:
        self.name, self.steps = name, facts.steps
        self.needs = Access[facts.needs]
        self.stop_rule, self.minimises = StopRule(facts.stop_rule), facts.minimises
        self.cite, self.summary, self.source = facts.cite, facts.summary, facts.source
        self.norms, self.goals, self.joint = tuple(facts.norms), tuple(facts.goals), facts.joint
        self.samples = facts.samples
        self.who = f"submission {name}"
        self.told, self.made = facts.parameters, made
        self.cage: SandboxProcess | None = None
        self.sent: dict[str, tuple[Tensor, int]] = {}
        """What the worker has of the rows at play, and in which version."""
        for method in facts.methods:
            setattr(self, method, getattr(self, METHODS[method]))

    def resolved_elsewhere(self) -> Mapping[str, Any]:
        """Its parameters, as its worker names them."""
        return self.told

    def start(self, problem: Problem) -> State:
        """The state of newly arrived rows."""
        return self._played("start", problem, {})

    def step(self, problem: Problem, state: State) -> State:
        """The next state of all rows."""
        return self._played("step", problem, named("state ", state))

    def _converged(self, state: State) -> Tensor:
        return self._of_each_row("done", named("state ", state))

    def _unmoved(self, before: State, after: State) -> Tensor:
        return self._of_each_row("stays", named("before ", before) | named("after ", after))

    def _restarts(self, classes: int) -> int:
        frame = self._ask({"do": "restart_count", "classes": classes}, {}, 0)
        found = frame.words.get("restart_count")
        if type(found) is not int:
            raise PluginError(
                f"{self.who} has {printable(found)} restarts; a whole number was expected."
            )
        return found

    def _of_each_row(self, question: str, given: Mapping[str, Tensor]) -> Tensor:
        first = next(iter(given.values()))
        frame = self._ask({"do": question}, given, len(first))
        found = self._cage().tensors(self.who, frame, "rows")["rows"]
        if found.shape != first.shape[:1] or found.dtype is not torch.bool:
            raise PluginError(
                f"{self.who} answered {question} with {found.dtype} {list(found.shape)}; bool "
                f"[{len(first)}] was expected."
            )
        return found.to(first.device)

    def _played(self, question: str, problem: Problem, state: dict[str, Tensor]) -> State:
        rows = require_type(problem, BatchProblem, "the problem")
        words = {
            "do": question, "name": self.name, "classes": rows.classes,
            "ball": encode_set(rows.ball, self.who), "goal": [rows.goal.kind, rows.goal.rule],
        }  # fmt: skip
        given = self._news(rows) | state
        frame = self._ask(words, given, ROOM * 8 * rows.x.numel(), QueryServer(self, rows))
        return self._state(rows, frame)

    def _news(self, rows: BatchProblem) -> dict[str, Tensor]:
        """What the worker does not have yet: images and labels stay the same for many steps."""
        self._cage()
        news: dict[str, Tensor] = {}
        for name in SEEN:
            value: Tensor = getattr(rows, name)
            before, version = self.sent.get(name, (None, -1))
            if value is not before or value._version != version:
                news[name] = value
                self.sent[name] = (value, value._version)
        return news

    def _state(self, problem: BatchProblem, frame: Frame) -> State:
        """The state that came: a tensor, or fields of which the first is the image."""
        found = self._cage().tensors(self.who, frame)
        names, parts = tuple(found), list(found.values())
        rows = [tuple(part.shape[:1]) for part in parts]
        if not parts or set(rows) != {(len(problem.x),)}:
            raise PluginError(
                f"{self.who} gave a state of {printable(rows)} rows; expected {len(problem.x)}."
            )
        parts = [part.to(problem.x.device) for part in parts]
        if frame.words.get("alone") is True:
            return parts[0]
        try:
            return kind_of(names)(*parts)
        except ValueError as error:
            raise PluginError(f"{self.who} gave a state without names: {error}.") from error

    def _ask(
        self, words: Mapping[str, Any], given: Mapping[str, Tensor], largest: int,
        serve: QueryServer | None = None,
    ) -> Frame:  # fmt: skip
        told, parts = encode_tensors(given)
        cage = self._cage()
        return cage.ask(
            self.who, {**words, "tensors": told}, *parts,
            seconds=cage.limits.call, largest=largest, serve=serve,
        )  # fmt: skip

    def _cage(self) -> SandboxProcess:
        """Its worker; another one where that has ended. Who is not at play keeps none."""
        if self.cage is None or not self.cage.alive:
            other = AttackProxy.at_play() if AttackProxy.at_play else None
            if other is not None and other.cage is not None:
                other.cage.close()
            self.cage, self.sent, AttackProxy.at_play = self.made(), {}, weakref.ref(self)
        return self.cage


class QueryServer:
    """What an attack asks in one step, put to its Problem, and its losses priced in return."""

    def __init__(self, attack: AttackProxy, problem: BatchProblem) -> None:
        self.attack, self.problem = attack, problem

    def __call__(self, frame: Frame, consult: Consult) -> Reply:
        """The answer to one wish."""
        question, problem, given = frame.words.get("ask"), self.problem, self._given(frame)
        if question == "clean":
            return reply({"clean": problem.clean_logits})
        if question not in NEEDS or not NEEDS[question] <= given.keys():
            raise PluginError(f"{self.attack.who} asked for {printable((question, list(given)))}.")
        adv, where = given["adv"], given.get("where")
        if question == "gradient":
            return reply(problem.gradient(adv, self._loss(consult), where)._asdict())
        if question == "jacobian":
            minus = given.get("minus")
            return reply(problem.jacobian(adv, given["classes"], where, minus=minus)._asdict())
        answer = problem.logits if question == "logits" else problem.labels
        return reply({question: answer(adv, where)})

    def _given(self, frame: Frame) -> dict[str, Tensor]:
        x, classes = self.problem.x, self.problem.classes
        found = self.attack._cage().tensors(self.attack.who, frame)
        for name, part in found.items():
            dims, kind = SHAPES.get(name, (0, None))
            sizes = part.shape if name == "adv" else part.shape[:1]
            fits = part.dtype is kind and part.dim() == dims and sizes == x.shape[: len(sizes)]
            if fits and kind is torch.int64:
                fits = part.numel() > 0 and 0 <= int(part.min()) <= int(part.max()) < classes
            if not fits:
                raise PluginError(
                    f"{self.attack.who} asked with {printable(name)} of {part.dtype} "
                    f"{list(part.shape)}, which does not fit {len(x)} images of {classes} classes."
                )
        return {name: part.to(x.device) for name, part in found.items()}

    def _loss(self, consult: Consult) -> Loss:
        """The attack's loss of logits: what it is and its slope come from the worker together."""

        def priced(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
            told, parts = encode_tensors({"logits": logits, "label": label})
            frame = consult(({"ask": "loss", "tensors": told}, parts))
            if "error" in frame.words:
                raise PluginError(f"{self.attack.who} failed: {printable(frame.words['error'])}.")
            found = self.attack._cage().tensors(self.attack.who, frame, "loss", "slope")
            value, slope = (part.to(logits.device) for part in found.values())
            if value.shape != logits.shape[:1] or slope.shape != logits.shape:
                raise PluginError(
                    f"{self.attack.who} gave a loss {list(value.shape)} of logits "
                    f"{list(logits.shape)}; one number a row was expected."
                )
            return value, slope

        return lambda logits, label: _Priced.apply(logits, label, priced)


class _Priced(torch.autograd.Function):
    """A loss whose value and slope are known."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, label: Tensor,
        priced: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:  # fmt: skip
        value, slope = priced(logits.detach(), label)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return weight[:, None] * slope, None, None


@functools.lru_cache(maxsize=64)
def kind_of(names: tuple[str, ...]) -> Any:
    """The type of a state with these fields."""
    return collections.namedtuple("LockedState", names)


def named(prefix: str, state: State) -> dict[str, Tensor]:
    """The tensors of a state, each by its name."""
    parts: Sequence[Tensor] = [state] if isinstance(state, Tensor) else state
    return {f"{prefix}{place}": part for place, part in enumerate(parts)}


def reply(tensors: Mapping[str, Tensor]) -> Reply:
    """An answer of tensors alone."""
    told, parts = encode_tensors(tensors)
    return {"tensors": told}, parts
