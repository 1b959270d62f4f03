"""Inside the walls: a defense, built with weights that the harness lends, and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.answers import checked_logits
from bench.engine.model_access import freeze, input_gradient
from bench.plugin import Defense
from bench.registry.discovery import load_built_in
from bench.registry.registry import Registry
from bench.sandbox.channel import WorkerChannel, tensors_of
from bench.sandbox.protocol import Frame
from bench.training.state import seeded_by_name
from bench.training.weights_cache import load_weights


class DefenseWorker:
    """Answers what is asked of a defense."""

    def __init__(self, line: WorkerChannel, offered: Callable[[Frame], Any]) -> None:
        self.line, self.offered = line, offered
        self.module: nn.Module | None = None
        self.graph: tuple[Tensor, Tensor] | None = None
        """The last images and logits whose slope may be asked."""

    def declare(self, frame: Frame) -> None:
        """What the defense says of itself."""
        defense: Defense = self.offered(frame)
        own = ("cite", "summary", "datasets", "surrogate", "quick", "forwards", "rejects")
        facts = {name: getattr(defense, name) for name in own}
        facts |= {"claims": [asdict(claim) for claim in defense.claims]}
        facts |= {"draws": defense.randomness.draws if defense.randomness else None}
        facts |= {"bpda": defense.bpda is not None, "recipe": defense.recipe is not None}
        self.line.reply({"facts": facts})

    def build(self, frame: Frame) -> None:
        """The module, or what an attacker differentiates through instead."""
        defense: Defense = self.offered(frame)
        loader = RemoteLoader(
            self.line, (defense.name,), frame.words["shape"], frame.words["classes"]
        )
        make = defense.bpda if frame.words["role"] == "stand-in" else defense.build
        if make is None:
            raise TypeError("it declares no stand-in")
        with seeded_by_name(f"build {defense.name}", torch.device("cpu")):
            module = make(loader)
        if not isinstance(module, nn.Module):
            raise TypeError(f"build gave {type(module).__name__}; a torch.nn.Module was expected")
        self.module = freeze(module)
        self.line.reply({})

    def forward(self, frame: Frame) -> None:
        """Logits of a batch, drawn from the state of torch's generator that came along."""
        if self.module is None:
            raise TypeError("nothing is built yet")
        came, keep = tensors_of(frame), frame.words["keep"]
        torch.set_rng_state(came["state"])
        leaf = came["images"].requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            logits = checked_logits(self.module(leaf), len(leaf))
        self.graph = (leaf, logits) if keep else None
        drew = not torch.equal(came["state"], torch.get_rng_state())
        self.line.reply({"drew": drew}, {"logits": logits})

    def climb(self, frame: Frame) -> None:
        """The slope of the last answer: its gradient to the images, times what came."""
        if self.graph is None:
            raise TypeError("no answer stands whose slope could be asked")
        leaf, logits = self.graph
        with torch.enable_grad():
            found = input_gradient((logits * tensors_of(frame)["weight"]).sum(), leaf, keep=True)
        self.line.reply({}, {"slope": found})


class RemoteLoader:
    """The loader of `bench.plugin`, whose weights the harness lends."""

    def __init__(
        self, line: WorkerChannel, chain: tuple[str, ...], shape: Any, classes: int
    ) -> None:
        self.line, self.chain = line, chain
        self.shape, self.classes = tuple(shape), classes

    def trained(self, module: nn.Module) -> nn.Module:
        """Filled with the weights of the recipe of whoever is being built."""
        return self._filled(module, {"ask": "trained"})

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """Filled from a file that lies beside the entry, or among the data."""
        return self._filled(module, {"ask": "weights", "file": file, "sha256": sha256})

    def defense(self, name: str) -> nn.Module:
        """A built-in defense, built here as the harness would."""
        found = self.line.wish({"ask": "defense", "of": self.chain, "name": name})
        registry = Registry.empty()
        registry.add_plugins([load_built_in(found.words["module"])])
        below = RemoteLoader(self.line, (*self.chain, name), self.shape, self.classes)
        with seeded_by_name(f"build {name}", torch.device("cpu")):
            return freeze(registry.find("defense", name).value.build(below))

    def _filled(self, module: nn.Module, wish: Mapping[str, Any]) -> nn.Module:
        lent = self.line.wish({**wish, "of": self.chain})
        return load_weights(module, bytes(lent.body), lent.words["path"])
