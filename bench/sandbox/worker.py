"""Inside the walls: one stranger's plugin, declared and asked over one socket.

What stands here is trusted until `offered` runs the stranger's first line, and not after.
"""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import PLUGIN_EXCEPTIONS, error_text
from bench.registry.discovery import Plugin
from bench.registry.loader import module_from_source
from bench.registry.registry import Registry
from bench.sandbox.attack_worker import AttackWorker
from bench.sandbox.channel import WorkerChannel
from bench.sandbox.defense_worker import DefenseWorker
from bench.sandbox.isolation import Limits, drop_rights
from bench.sandbox.protocol import Channel, ConnectionClosedError, Frame

LONGEST = 1000  # characters of a complaint


def main(channel: int, stranger: int, limits: Limits) -> None:
    """Give up every right, say so, and answer until the harness hangs up."""
    drop_rights(stranger, limits)
    worker = Worker(WorkerChannel(Channel(socket.socket(fileno=channel))))
    try:
        worker.line.reply({})
        while True:
            worker.serve(worker.line.listen())
    except ConnectionClosedError:
        sys.exit(0)


class Worker:
    """Hands each question to whom it is for."""

    def __init__(self, line: WorkerChannel) -> None:
        self.line = line
        defense, attack = DefenseWorker(line, offered), AttackWorker(line, offered)
        self.questions = {
            "declare defense": defense.declare, "build": defense.build,
            "forward": defense.forward, "climb": defense.climb,
            "declare attack": attack.declare, "start": attack.start, "step": attack.step,
            "done": attack.done, "stays": attack.stays, "restart_count": attack.restart_count,
        }  # fmt: skip

    def serve(self, frame: Frame) -> None:
        """One question; whatever the stranger raises is the answer."""
        try:
            self.questions[frame.words["do"]](frame)
        except ConnectionClosedError:
            raise
        except PLUGIN_EXCEPTIONS as error:
            self.line.reply({"error": f"{error_text(error)}{place(error)}"[:LONGEST]})


def offered(frame: Frame) -> Any:
    """What a plugin's source offers, through the door that every plugin passes."""
    torch.set_num_threads(frame.words["threads"])
    kind, name = frame.words["kind"], frame.words["name"]
    registry = Registry.empty()
    module = module_from_source(bytes(frame.body), Path(frame.words["path"]))
    registry.add_plugins([Plugin(module, "submission", "")])
    if registry.problems:
        raise TypeError(" ".join(registry.problems))
    found: Mapping[str, Any] = getattr(registry, f"{kind}s")
    if list(found) != [name]:
        others = ", ".join(found) or "none"
        raise TypeError(f"its card names the {kind} {name!r}; the code offers {others}")
    return found[name].value


def place(error: BaseException) -> str:
    """Where in the plugin's file it happened, as the end of a sentence; empty where nowhere."""
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if Path(step.filename).name == "plugin.py"]
    return f" (plugin.py, line {lines[-1]})" if lines else ""
