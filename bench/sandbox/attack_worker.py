"""Inside the walls: an attack, and the problem as it sees it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.engine.model_access import input_gradient
from bench.engine.problem import BatchProblem
from bench.plugin import Attack, Gradient, Jacobian, State, Traits
from bench.plugin.losses import Loss
from bench.sandbox.channel import WorkerChannel, tensors_of
from bench.sandbox.norm_codec import decode_set
from bench.sandbox.protocol import Frame
from bench.threats.access import Access, Budget
from bench.threats.fingerprint import parameters_of
from bench.threats.threat_model import Goal

METHODS = ("restart_count", "done", "stays")
TRAITS = ("cite", "summary", "minimises", "source", "joint", "samples")


class AttackWorker:
    """Answers what is asked of an attack; its state lives with the harness."""

    def __init__(self, line: WorkerChannel, offered: Callable[[Frame], Any]) -> None:
        self.line, self.offered = line, offered
        self.attack: Attack | None = None
        self.kind: type | None = None
        """Of its state; None where that is one tensor."""
        self.rows: dict[str, Tensor] = {}
        """What is known of the rows at play; what has not changed does not come again."""

    def declare(self, frame: Frame) -> None:
        """What the attack says of itself; from now on it is the one that is asked."""
        self.attack = attack = self.offered(frame)
        traits = Traits.of(attack)
        facts: dict[str, Any] = {name: getattr(traits, name) for name in TRAITS}
        facts |= {"norms": list(traits.norms), "goals": list(traits.goals)}
        facts |= {"needs": attack.needs.name, "stop_rule": traits.stop_rule.value}
        facts |= {"whole": Traits.is_external(attack), "steps": getattr(attack, "steps", 1)}
        facts |= {"methods": [n for n in METHODS if getattr(attack, n, None) is not None]}
        self.line.reply({"facts": facts | {"parameters": parameters_of(attack)}})

    def start(self, frame: Frame) -> None:
        """The state of newly arrived rows."""
        state = self._known().start(self._problem(frame, tensors_of(frame)))
        self.kind = None if isinstance(state, Tensor) else type(state)
        self._hand_back(state)

    def step(self, frame: Frame) -> None:
        """The next state of all rows."""
        came = tensors_of(frame)
        problem = self._problem(frame, came)  # first of all: its news do not come again
        self._hand_back(self._known().step(problem, self._state(came, "state ")))

    def done(self, frame: Frame) -> None:
        """Which rows have converged."""
        state = self._state(tensors_of(frame), "state ")
        self.line.reply({}, {"rows": self._known().done(state)})  # type: ignore[attr-defined]

    def stays(self, frame: Frame) -> None:
        """Which rows a step has left as they were."""
        came = tensors_of(frame)
        before, after = self._state(came, "before "), self._state(came, "after ")
        self.line.reply({}, {"rows": self._known().stays(before, after)})  # type: ignore[attr-defined]

    def restart_count(self, frame: Frame) -> None:
        """The number of restarts that a row may need."""
        self.line.reply({"restart_count": self._known().restart_count(frame.words["classes"])})  # type: ignore[attr-defined]

    def _problem(self, frame: Frame, came: Mapping[str, Tensor]) -> RemoteProblem:
        self.rows |= {name: value for name, value in came.items() if " " not in name}
        if "x" in came:
            self.rows.pop("clean", None)
        return RemoteProblem(self.line, frame.words, self.rows)

    def _known(self) -> Attack:
        if self.attack is None:
            raise TypeError("no attack has been declared yet")
        return self.attack

    def _state(self, came: Mapping[str, Tensor], prefix: str) -> State:
        parts = [value for name, value in came.items() if name.startswith(prefix)]
        return parts[0] if self.kind is None else self.kind(*parts)

    def _hand_back(self, state: State) -> None:
        parts = {"adv": state} if isinstance(state, Tensor) else state._asdict()
        wrong = [name for name, part in parts.items() if not isinstance(part, Tensor)]
        if wrong:
            raise TypeError(f"its state has {wrong[0]}, which is no tensor")
        self.line.reply({"alone": isinstance(state, Tensor)}, parts)


class RemoteProblem(BatchProblem):
    """The Problem of `bench.plugin`: what it knows came along, what it asks the harness answers."""

    def __init__(
        self, line: WorkerChannel, words: Mapping[str, Any], came: dict[str, Tensor]
    ) -> None:
        x, y = came["x"], came["y"]
        nobody = torch.zeros(len(y), dtype=torch.int64)
        super().__init__(
            None, decode_set(words["ball"]), Goal(*words["goal"]), x, y, target=came["target"],
            clean_logits=torch.empty(len(y), words["classes"]), example=nobody, seed=0,
            name=words["name"], budget=Budget(),
        )  # fmt: skip
        self.line, self.came = line, came
        self.t, self.restart, self.active, self._key = (
            came[name] for name in ("t", "restart", "active", "key")
        )

    def _reveal(self, access: Access) -> None:
        if "clean" not in self.came:
            self.came["clean"] = self._asked("clean", {})["clean"]
        self.clean = self.came["clean"]

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """One forward and one gradient for each row that plays."""
        found = self._asked("gradient", {"adv": adv, "where": where}, loss=loss)
        return Gradient(found["gradient"], found["loss"], found["logits"])

    def jacobian(
        self, adv: Tensor, classes: Tensor, where: Tensor | None = None, *,
        minus: Tensor | None = None,
    ) -> Jacobian:  # fmt: skip
        """One forward and k gradients for each row that plays."""
        asked = {"adv": adv, "classes": classes, "where": where, "minus": minus}
        found = self._asked("jacobian", asked)
        return Jacobian(found["rows"], found["logits"])

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """[n, K]."""
        return self._asked("logits", {"adv": adv, "where": where})["logits"]

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """[n]."""
        return self._asked("labels", {"adv": adv, "where": where})["labels"]

    def _asked(
        self, question: str, tensors: Mapping[str, Tensor | None], loss: Loss | None = None
    ) -> dict[str, Tensor]:
        """What the harness answers; meanwhile it may ask what the loss is of some logits."""
        given = {name: value for name, value in tensors.items() if value is not None}
        frame = self.line.wish({"ask": question}, given)
        while frame.words.get("ask") == "loss" and loss is not None:
            came = tensors_of(frame)
            leaf = came["logits"].requires_grad_()
            with torch.enable_grad():
                value = loss(leaf, came["label"])
                uphill = input_gradient(value.sum(), leaf)
            frame = self.line.wish({"ask": "priced"}, {"loss": value.detach(), "slope": uphill})
        return tensors_of(frame)
