"""The worker's side of a sandboxed attack: runs its methods on a remote problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.engine.external_model import isolated_random_state
from bench.engine.model_access import input_gradient
from bench.engine.problem import BatchProblem
from bench.plugin import Attack, Gradient, Jacobian, State, Traits, is_shared
from bench.plugin.losses import Loss
from bench.sandbox.channel import WorkerChannel, frame_tensors
from bench.sandbox.external_worker import run_remotely
from bench.sandbox.protocol import Frame
from bench.sandbox.set_codec import decode_set
from bench.threats.access import Access, Budget
from bench.threats.fingerprint import parameters_of
from bench.threats.threat_model import Goal

WORKER_METHODS = ("restart_count", "done", "stays")
VALUE_TRAITS = (
    "cite", "summary", "minimises", "source", "eot_draws", "examples", "joint", "samples", "rows",
)  # fmt: skip
"""Traits that are sent as they are."""


class AttackWorker:
    """Serves requests about one attack; the harness keeps the attack's state."""

    def __init__(self, channel: WorkerChannel, load: Callable[[Frame], Any]) -> None:
        """`load` returns the registered plugin of the source in a frame."""
        self.channel, self.load = channel, load
        self.attack: Attack | None = None
        self.state_type: type | None = None
        """Type of the attack's state; None where that is one tensor."""
        self.rows: dict[str, Tensor] = {}
        """Tensors of the current rows; the harness sends only those that have changed."""
        self.prepared = False
        """Whether `prepare` of an external attack was called."""

    def declare(self, frame: Frame) -> None:
        """Send the attributes of the attack that are plain values; later requests use it."""
        self.attack = attack = self.load(frame)
        if is_shared(attack):
            raise TypeError(
                "it fits one point for all images, which a sandboxed process does not offer: run it"
                " with --allow-unsandboxed"
            )
        traits = Traits.of(attack)
        declarations: dict[str, Any] = {name: getattr(traits, name) for name in VALUE_TRAITS}
        declarations |= {
            "norms": list(traits.norms),
            "goals": list(traits.goals),
            "coordinates": traits.coordinates,
            "written_for": list(traits.written_for),
            "needs": attack.needs.name,
            "stop_rule": traits.stop_rule.value,
            "external": Traits.is_external(attack),
            "steps": getattr(attack, "steps", 1),
            "methods": [n for n in WORKER_METHODS if getattr(attack, n, None) is not None],
            "parameters": parameters_of(attack),
        }
        self.channel.reply({"declarations": declarations})

    def start(self, frame: Frame) -> None:
        """Send the initial state of new rows."""
        state = self._declared().start(self._problem(frame, frame_tensors(frame)))
        self.state_type = None if isinstance(state, Tensor) else type(state)
        self._reply_state(state)

    def step(self, frame: Frame) -> None:
        """Send the next state of all rows."""
        sent = frame_tensors(frame)
        problem = self._problem(frame, sent)  # even if the state is refused: it updates the rows
        self._reply_state(self._declared().step(problem, self._state(sent, "state ")))

    def run(self, frame: Frame) -> None:
        """Send the candidates of an external attack. Raises TypeError where it is none."""
        attack = self._declared()
        if not Traits.is_external(attack):
            raise TypeError("it has no `run`")
        prepare = getattr(attack, "prepare", None)
        if prepare is not None and not self.prepared:
            with isolated_random_state(0):
                prepare()
        self.prepared = True
        run_remotely(self.channel, attack, frame)

    def done(self, frame: Frame) -> None:
        """Send which rows have converged."""
        state = self._state(frame_tensors(frame), "state ")
        self.channel.reply({}, {"rows": self._declared().done(state)})  # type: ignore[attr-defined]

    def stays(self, frame: Frame) -> None:
        """Send which rows a step left unchanged."""
        sent = frame_tensors(frame)
        before, after = self._state(sent, "before "), self._state(sent, "after ")
        self.channel.reply({}, {"rows": self._declared().stays(before, after)})  # type: ignore[attr-defined]

    def restart_count(self, frame: Frame) -> None:
        """Send the number of restarts per example."""
        count = self._declared().restart_count(frame.header["classes"])  # type: ignore[attr-defined]
        self.channel.reply({"restart_count": count})

    def _problem(self, frame: Frame, sent: Mapping[str, Tensor]) -> RemoteProblem:
        self.rows |= {name: value for name, value in sent.items() if " " not in name}
        if "x" in sent:
            self.rows.pop("clean", None)
        return RemoteProblem(self.channel, frame.header, self.rows)

    def _declared(self) -> Attack:
        if self.attack is None:
            raise TypeError("no attack has been declared yet")
        return self.attack

    def _state(self, sent: Mapping[str, Tensor], prefix: str) -> State:
        parts = [value for name, value in sent.items() if name.startswith(prefix)]
        return parts[0] if self.state_type is None else self.state_type(*parts)

    def _reply_state(self, state: State) -> None:
        parts = {"adv": state} if isinstance(state, Tensor) else state._asdict()
        wrong = [name for name, part in parts.items() if not isinstance(part, Tensor)]
        if wrong:
            raise TypeError(f"field {wrong[0]} of its state is no tensor")
        self.channel.reply({"single": isinstance(state, Tensor)}, parts)


class RemoteProblem(BatchProblem):
    """The Problem of `bench.plugin` in a worker: sends every query to the harness."""

    def __init__(
        self, channel: WorkerChannel, header: Mapping[str, Any], rows: dict[str, Tensor]
    ) -> None:
        """`rows` are the tensors of the current rows; the clean logits are added to them."""
        x, y = rows["x"], rows["y"]
        no_names = torch.zeros(len(y), dtype=torch.int64)
        super().__init__(
            None, decode_set(header["set"]), Goal(*header["goal"]), x, y, target=rows["target"],
            clean_logits=torch.empty(len(y), header["classes"]), example=no_names, seed=0,
            name=header["name"], budget=Budget(),
        )  # fmt: skip
        self.channel, self.rows = channel, rows
        self.t, self.restart, self.active, self._key = (
            rows[name] for name in ("t", "restart", "active", "key")
        )

    def _reveal(self, access: Access) -> None:
        if "clean" not in self.rows:
            self.rows["clean"] = self._request("clean", {})["clean"]
        self.clean = self.rows["clean"]

    def gradient(self, adv: Tensor, loss: Loss, where: Tensor | None = None) -> Gradient:
        """Query images [n, C, H, W]: one forward and one gradient of the loss per active row."""
        found = self._request("gradient", {"adv": adv, "where": where}, loss=loss)
        return Gradient(found["gradient"], found["loss"], found["logits"])

    def jacobian(
        self, adv: Tensor, classes: Tensor, where: Tensor | None = None, *,
        minus: Tensor | None = None,
    ) -> Jacobian:  # fmt: skip
        """Query images [n, C, H, W]: one forward and k gradients per active row."""
        sent = {"adv": adv, "classes": classes, "where": where, "minus": minus}
        found = self._request("jacobian", sent)
        return Jacobian(found["rows"], found["logits"])

    def logits(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """The logits [n, K] of images [n, C, H, W]."""
        return self._request("logits", {"adv": adv, "where": where})["logits"]

    def labels(self, adv: Tensor, where: Tensor | None = None) -> Tensor:
        """The predicted labels [n] of images [n, C, H, W]."""
        return self._request("labels", {"adv": adv, "where": where})["labels"]

    def _request(
        self, query: str, tensors: Mapping[str, Tensor | None], loss: Loss | None = None
    ) -> dict[str, Tensor]:
        """The harness's answer to a query; before it, the harness may request values of `loss`."""
        sent = {name: value for name, value in tensors.items() if value is not None}
        frame = self.channel.request({"request": query}, sent)
        while frame.header.get("request") == "loss" and loss is not None:
            given = frame_tensors(frame)
            leaf = given["logits"].requires_grad_()
            with torch.enable_grad():
                value = loss(leaf, given["label"])
                gradient = input_gradient(value.sum(), leaf)
            computed = {"loss": value.detach(), "gradient": gradient}
            frame = self.channel.request({"request": "computed"}, computed)
        return frame_tensors(frame)
