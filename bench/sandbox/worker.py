"""Inside the walls: one stranger's defense, declared, built and asked over one socket.

What stands here is trusted until `defense_in` runs the stranger's first line, and not after.
"""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.course import seeded
from bench.plugin import Defense
from bench.registry import STRANGE, Plugin, Registry, built_in, said
from bench.sandbox.jail import Limits, enter
from bench.sandbox.wire import Channel, Frame, HangupError, heard, told
from bench.shelf import fill
from bench.source import executed
from bench.target import checked, freeze, slope

LARGEST = 4 << 30  # bytes that the harness may send at once: it is trusted
LONGEST = 1000  # characters of a complaint


def main(channel: int, stranger: int, limits: Limits) -> None:
    """Give up every right, say so, and answer until the harness hangs up."""
    enter(stranger, limits)
    worker = Worker(Channel(socket.socket(fileno=channel)))
    try:
        worker.channel.send(0, {})
        while True:
            worker.serve(worker.channel.receive(LARGEST))
    except HangupError:
        sys.exit(0)


class Worker:
    """Answers the questions of the harness, each by a method of its name."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.number = 0
        self.module: nn.Module | None = None
        self.graph: tuple[Tensor, Tensor] | None = None
        """The last images and logits whose slope may be asked."""

    def serve(self, frame: Frame) -> None:
        """One question; whatever the stranger raises is the answer."""
        self.number = frame.number
        questions: dict[str, Callable[[Frame], None]] = {
            "declare": self.declare, "build": self.build,
            "forward": self.forward, "climb": self.climb,
        }  # fmt: skip
        try:
            questions[frame.words["do"]](frame)
        except HangupError:
            raise
        except STRANGE as error:
            self.reply({"error": f"{said(error)}{place(error)}"[:LONGEST]})

    def reply(self, words: Mapping[str, Any], *parts: Any) -> None:
        """The answer to the question at hand."""
        self.channel.send(self.number, words, *parts)

    def declare(self, frame: Frame) -> None:
        """What the defense says of itself."""
        defense = defense_in(frame)
        claims = [asdict(claim) for claim in defense.claims]
        own = ("cite", "summary", "datasets", "twin", "quick", "forwards", "rejects")
        facts = {name: getattr(defense, name) for name in own}
        facts |= {"claims": claims, "detail": dict(defense.detail)}
        facts |= {"draws": defense.randomness.draws if defense.randomness else None}
        facts |= {"stand_in": defense.stand_in is not None, "recipe": defense.recipe is not None}
        self.reply({"facts": facts})

    def build(self, frame: Frame) -> None:
        """The module, or what an attacker differentiates through instead."""
        torch.set_num_threads(frame.words["threads"])
        defense = defense_in(frame)
        shelf = Lent(self, (defense.name,), frame.words["shape"], frame.words["classes"])
        make = defense.stand_in if frame.words["role"] == "stand-in" else defense.build
        if make is None:
            raise TypeError("it declares no stand-in")
        with seeded(f"build {defense.name}", torch.device("cpu")):
            module = make(shelf)
        if not isinstance(module, nn.Module):
            raise TypeError(f"build gave {type(module).__name__}; a torch.nn.Module was expected")
        self.module = freeze(module)
        self.reply({})

    def forward(self, frame: Frame) -> None:
        """Logits of a batch, drawn from the state of torch's generator that came along."""
        if self.module is None:
            raise TypeError("nothing is built yet")
        size, keep = frame.words["state"], frame.words["keep"]
        torch.set_rng_state(torch.frombuffer(frame.body[:size], dtype=torch.uint8))
        images = heard(frame.words, frame.body[size:])
        before = torch.get_rng_state()
        leaf = images.requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            logits = checked(self.module(leaf), len(images))
        self.graph = (leaf, logits) if keep else None
        words, content = told(logits)
        drew = not torch.equal(before, torch.get_rng_state())
        self.reply({**words, "drew": drew}, content)

    def climb(self, frame: Frame) -> None:
        """The slope of the last answer: its gradient to the images, times what came."""
        if self.graph is None:
            raise TypeError("no answer stands whose slope could be asked")
        leaf, logits = self.graph
        weight = heard(frame.words, frame.body)
        with torch.enable_grad():
            found = slope((logits * weight).sum(), leaf, keep=True)
        words, content = told(found)
        self.reply(words, content)

    def wish(self, words: Mapping[str, Any]) -> Frame:
        """Ask the harness for something while the question at hand waits."""
        self.channel.send(self.number, words)
        return self.channel.receive(LARGEST)


class Lent:
    """The shelf of `bench.plugin`, whose weights the harness lends."""

    def __init__(self, worker: Worker, chain: tuple[str, ...], shape: Any, classes: int) -> None:
        self.worker, self.chain = worker, chain
        self.shape, self.classes = tuple(shape), classes

    def trained(self, module: nn.Module) -> nn.Module:
        """Filled with the weights of the recipe of whoever is being built."""
        return self._filled(module, {"ask": "trained"})

    def filled(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """Filled from a file that lies beside the entry, or among the data."""
        return self._filled(module, {"ask": "filled", "file": file, "sha256": sha256})

    def built(self, name: str) -> nn.Module:
        """A built-in defense, built here as the harness would."""
        found = self.worker.wish({"ask": "built", "of": self.chain, "name": name})
        registry = Registry.empty()
        registry.admit([built_in(found.words["module"])])
        below = Lent(self.worker, (*self.chain, name), self.shape, self.classes)
        with seeded(f"build {name}", torch.device("cpu")):
            return freeze(registry.find("defense", name).value.build(below))

    def _filled(self, module: nn.Module, wish: Mapping[str, Any]) -> nn.Module:
        lent = self.worker.wish({**wish, "of": self.chain})
        return fill(module, bytes(lent.body), lent.words["path"])


def defense_in(frame: Frame) -> Defense:
    """The defense that a plugin's source offers, through the door that every plugin passes."""
    name, path = frame.words["name"], Path(frame.words["path"])
    registry = Registry.empty()
    registry.admit([Plugin(executed(bytes(frame.body), path), "submission", "")])
    if registry.problems:
        raise TypeError(" ".join(registry.problems))
    if list(registry.defenses) != [name]:
        found = ", ".join(registry.defenses) or "none"
        raise TypeError(f"its card names the defense {name!r}; the code offers {found}")
    found_here: Defense = registry.defenses[name].value
    return found_here


def place(error: BaseException) -> str:
    """Where in the plugin's file it happened, as the end of a sentence; empty where nowhere."""
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if Path(step.filename).name == "plugin.py"]
    return f" (plugin.py, line {lines[-1]})" if lines else ""
