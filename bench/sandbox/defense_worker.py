"""The worker's side of a sandboxed defense: builds the model and evaluates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.answer_work import work_of_answer
from bench.engine.answers import checked_logits
from bench.engine.model_access import input_gradient
from bench.plugin import Defense
from bench.registry.discovery import load_built_in
from bench.registry.registry import Registry
from bench.sandbox.channel import WorkerChannel, frame_tensors
from bench.sandbox.protocol import Frame
from bench.training.defense_builder import build_module
from bench.training.weights_cache import load_weights

VALUE_FIELDS = ("cite", "summary", "datasets", "surrogate", "quick", "forwards", "rejects")
"""Fields of a Defense that are sent as they are."""


def plain_fields(defense: Defense) -> dict[str, Any]:
    """The fields of a Defense as plain values; of `bpda` and `recipe` whether they are set."""
    fields = {name: getattr(defense, name) for name in VALUE_FIELDS}
    fields |= {"claims": [asdict(claim) for claim in defense.claims]}
    fields |= {"draws": defense.randomness.draws if defense.randomness else None}
    return fields | {"bpda": defense.bpda is not None, "recipe": defense.recipe is not None}


class DefenseWorker:
    """Serves requests about one defense."""

    def __init__(self, channel: WorkerChannel, load: Callable[[Frame], Any]) -> None:
        """`load` returns the registered plugin of the source in a frame."""
        self.channel, self.load = channel, load
        self.module: nn.Module | None = None
        self.graph: tuple[Tensor, Tensor] | None = None
        """The last images [n, C, H, W] and logits [n, K] that were evaluated with a graph."""

    def declare(self, frame: Frame) -> None:
        """Send the fields of the Defense that are plain values."""
        self.channel.reply({"declarations": plain_fields(self.load(frame))})

    def build(self, frame: Frame) -> None:
        """Build the model, or its BPDA approximation.

        Raises TypeError where there is no such module.
        """
        defense: Defense = self.load(frame)
        loader = RemoteLoader(
            self.channel, (defense.name,), frame.header["shape"], frame.header["classes"]
        )
        make = defense.bpda if frame.header["role"] == "bpda" else defense.build
        if make is None:
            raise TypeError("it declares no BPDA approximation")
        self.module = build_module(defense.name, make, loader)
        self.channel.reply({})

    def forward(self, frame: Frame) -> None:
        """Send the logits [n, K] of images [n, C, H, W], from a given state of torch's generator.

        Raises TypeError before the model is built.
        """
        if self.module is None:
            raise TypeError("no model has been built yet")
        sent, keep = frame_tensors(frame), frame.header["keep"]
        torch.set_rng_state(sent["state"])
        leaf = sent["images"].requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            logits = checked_logits(self.module(leaf), len(leaf))
        self.graph = (leaf, logits) if keep else None
        drew = not torch.equal(sent["state"], torch.get_rng_state())
        self.channel.reply({"drew": drew}, {"logits": logits})

    def answer_work(self, frame: Frame) -> None:
        """Send what the model computes for one answer to images [n, C, H, W].

        Raises TypeError before the model is built.
        """
        if self.module is None:
            raise TypeError("no model has been built yet")
        sent = frame_tensors(frame)
        torch.set_rng_state(sent["state"])
        found = work_of_answer(self.module, sent["images"])
        self.graph = None
        self.channel.reply({"work": found._asdict()})

    def backward(self, frame: Frame) -> None:
        """Send the gradient [n, C, H, W] of the last logits, weighted with the sent [n, K].

        Raises TypeError where the last logits were evaluated without a graph.
        """
        if self.graph is None:
            raise TypeError("there is no graph to differentiate")
        leaf, logits = self.graph
        with torch.enable_grad():
            weighted = (logits * frame_tensors(frame)["weight"]).sum()
            gradient = input_gradient(weighted, leaf, keep=True)
        self.channel.reply({}, {"gradient": gradient})


class RemoteLoader:
    """The Loader of `bench.plugin` in a worker: requests weights from the harness."""

    def __init__(
        self, channel: WorkerChannel, chain: tuple[str, ...], shape: Any, classes: int
    ) -> None:
        """`chain` names the defenses under construction, the outermost first."""
        self.channel, self.chain = channel, chain
        self.shape, self.classes = tuple(shape), classes

    def trained(self, module: nn.Module) -> nn.Module:
        """The module with the weights that the recipe of the defense under construction trained."""
        return self._with_weights(module, {"request": "trained"})

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module with the weights of a file beside the submission or in the data folder."""
        return self._with_weights(module, {"request": "weights", "file": file, "sha256": sha256})

    def defense(self, name: str) -> nn.Module:
        """A built-in defense, built in this process as the harness builds it."""
        answer = self.channel.request({"request": "defense", "of": self.chain, "name": name})
        registry = Registry.empty()
        registry.add_plugins([load_built_in(answer.header["module"])])
        below = RemoteLoader(self.channel, (*self.chain, name), self.shape, self.classes)
        return build_module(name, registry.find("defense", name).value.build, below)

    def _with_weights(self, module: nn.Module, request: Mapping[str, Any]) -> nn.Module:
        answer = self.channel.request({**request, "of": self.chain})
        return load_weights(module, bytes(answer.body), answer.header["path"])
