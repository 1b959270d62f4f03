"""The program of a worker process: serves the harness's requests about one submitted plugin.

Code of this module is trusted until `submitted_plugin` runs the first line of the submission, and
not afterwards.
"""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
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
from bench.sandbox.isolation import Limits, drop_privileges
from bench.sandbox.protocol import Channel, ConnectionClosedError, Frame
from bench.sandbox.threat_declarations import declare_threat

MAX_ERROR_LENGTH = 1000  # characters
SCRATCH = Path("/tmp")  # of the sandbox alone


def main(channel: int, user: int, limits: Limits) -> None:
    """Drop all privileges, report ready, and serve requests until the harness disconnects."""
    drop_privileges(user, limits)
    worker = RequestServer(WorkerChannel(Channel(socket.socket(fileno=channel))))
    try:
        worker.channel.reply({})
        while True:
            worker.serve(worker.channel.next_request())
    except ConnectionClosedError:
        sys.exit(0)


class RequestServer:
    """Dispatches each request to its method."""

    def __init__(self, channel: WorkerChannel) -> None:
        self.channel = channel
        defense = DefenseWorker(channel, submitted_plugin)
        attack = AttackWorker(channel, submitted_plugin)
        self.methods: Mapping[str, Callable[[Frame], None]] = {
            "declare defense": defense.declare, "build": defense.build,
            "forward": defense.forward, "backward": defense.backward,
            "answer work": defense.answer_work,
            "declare attack": attack.declare, "start": attack.start, "step": attack.step,
            "done": attack.done, "stays": attack.stays, "restart_count": attack.restart_count,
            "run": attack.run, "declare threat": partial(declare_threat, channel, submitted_plugin),
        }  # fmt: skip

    def serve(self, frame: Frame) -> None:
        """Serve one request; an exception of the submission is sent as the reply.

        Raises ConnectionClosedError where the harness has disconnected.
        """
        try:
            self.methods[frame.header["method"]](frame)
        except ConnectionClosedError:
            raise
        except PLUGIN_EXCEPTIONS as error:
            text = f"{error_text(error)}{plugin_line(error)}"
            self.channel.reply({"error": text[:MAX_ERROR_LENGTH]})


def submitted_plugin(frame: Frame) -> Any:
    """The attack or defense of the source in a frame, registered like that of any other plugin.

    Raises TypeError where it is refused, or is not the one that its card names.
    """
    torch.set_num_threads(frame.header["threads"])
    kind, name = frame.header["kind"], frame.header["name"]
    registry, path = Registry.empty(), Path(frame.header["path"])
    if kind == "threat":  # the digest of a set of its own reads the file
        path = SCRATCH / path.name
        path.write_bytes(frame.body)
    module = module_from_source(bytes(frame.body), path)
    registry.add_plugins([Plugin(module, "submission", "")])
    if registry.problems:
        raise TypeError(" ".join(registry.problems))
    found: Mapping[str, Any] = getattr(registry, f"{kind}s")
    if list(found) != [name]:
        others = ", ".join(found) or "none"
        raise TypeError(f"its card names the {kind} {name!r}; the code registers {others}")
    return found[name].value


def plugin_line(error: BaseException) -> str:
    """The last line of plugin.py in a traceback, as the end of a sentence; empty without one."""
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if Path(step.filename).name == "plugin.py"]
    return f" (plugin.py, line {lines[-1]})" if lines else ""
