"""Answers of a defense that another Python interpreter has built, for the diagnostics.

One interpreter serves all defenses of a run, since it takes two CPU seconds to import torch. Its
process id, its hash seed and its clock differ from those of this process. It ends when this process
does.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import PluginError, error_text
from bench.registry.registry import Registry
from bench.training.defense_builder import DefenseBuilder
from bench.training.trained_weights import WeightsSource

CLOCK_SHIFT = 86400.0 * 400
"""Seconds by which the clock of the other interpreter is ahead."""
LIMIT_SECONDS = 300.0
"""Seconds after which an unanswered request fails."""


@dataclass(frozen=True)
class BuildRequest:
    """What an interpreter needs to build a defense."""

    defense: str
    dataset: str
    digest: str
    """Digest of the defense; another one is not answered."""
    submissions: str = ""
    """Folder of submissions; empty: only built-in and installed plugins are loaded."""
    allow_unsandboxed: bool = False
    folder: str = ""
    """Holds `weights/`; empty: the cache folder."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Recipe -> SHA-256 of the trained weights that the defense was built with."""


class FreshProcess:
    """Another interpreter that builds defenses and answers images."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONHASHSEED": "20000", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.evaluation.fresh_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which ends this process itself
        )
        self.requests = cast(IO[bytes], self.process.stdin)  # a pipe, as declared above
        self.answers = cast(IO[bytes], self.process.stdout)

    def logits(self, request: BuildRequest, images: Tensor) -> Tensor | str:
        """Logits [n, K] of float32 images [n, C, H, W] on the CPU, or the reason for none."""
        header = asdict(request) | {"shape": list(images.shape)}
        timer = threading.Timer(LIMIT_SECONDS, self.process.kill)
        timer.start()
        try:
            _send(self.requests, header, images)
            reply, content = _receive(self.answers)
        except (OSError, EOFError):
            self.close()
            return "another interpreter gave no answer"
        except BaseException:  # interrupted: the next answer would be that to this request
            self.close()
            raise
        finally:
            timer.cancel()
        return str(reply["error"]) if "error" in reply else content

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with suppress(BrokenPipeError):  # of a header that was never read
                pipe.close()


@cache
def _processes() -> dict[int, FreshProcess]:
    return {}


def fresh_process() -> FreshProcess:
    """The other interpreter of this process; started where there is none, or it has ended."""
    known = _processes()
    found = known.get(os.getpid())
    if found is None or found.process.poll() is not None:
        if found is not None:
            found.close()
        known[os.getpid()] = found = FreshProcess()
        atexit.register(found.close)
    return found


def _send(pipe: IO[bytes], header: dict[str, Any], content: Tensor | None = None) -> None:
    """A line of JSON, then the values of a float32 tensor [...]."""
    pipe.write(json.dumps(header).encode() + b"\n")
    if content is not None:
        pipe.write(np.ascontiguousarray(content.numpy(), "<f4").tobytes())
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], Tensor]:
    """A header and the tensor of its `shape` [...]; raises EOFError where the pipe ends."""
    line = pipe.readline()
    if not line:
        raise EOFError("the pipe was closed")
    header = json.loads(line)
    size = 4 * int(np.prod(header.get("shape", [0])))
    content = pipe.read(size)
    if len(content) != size:
        raise EOFError("the pipe was closed")
    values = np.frombuffer(content, "<f4").reshape(header.get("shape", [0]))
    return header, torch.from_numpy(values.copy())


@cache
def _registry(submissions: str, allow_unsandboxed: bool) -> Registry:
    if not submissions:
        return Registry.without_submissions()
    return Registry.load(Path(submissions), allow_unsandboxed=allow_unsandboxed)


def _answer(header: dict[str, Any], images: Tensor) -> Tensor:
    """Logits [n, K] of a defense, built now. Raises PluginError for another digest."""
    shape = header.pop("shape")
    request = BuildRequest(**header)
    registry = _registry(request.submissions, request.allow_unsandboxed)
    dataset = registry.find("dataset", request.dataset).value
    folder = Path(request.folder) if request.folder else None
    source = WeightsSource(folder, pinned=request.weights)
    builder = DefenseBuilder(registry, request.defense, dataset, source=source)
    module = builder.build()
    if builder.digest != request.digest:
        raise PluginError(f"{request.defense} has another digest there; it changed in this run.")
    with torch.no_grad():
        torch.manual_seed(0)
        answer: Tensor = module(images.reshape(shape))
    return answer.float()


def _shift_clock() -> None:
    """Move the clocks of the module `time`, before any plugin is imported."""
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, partial(_later, getattr(time, name), CLOCK_SHIFT))
        in_nanoseconds = f"{name}_ns"
        shift = int(CLOCK_SHIFT * 1e9)
        setattr(time, in_nanoseconds, partial(_later, getattr(time, in_nanoseconds), shift))


def _later(clock: Callable[[], float], shift: float) -> float:
    return clock() + shift


def answer_requests(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until the pipe ends."""
    while True:
        try:
            header, images = _receive(requests)
        except EOFError:
            return
        try:
            answer = _answer(header, images)
        except BaseException as error:  # a plugin may raise even SystemExit
            _send(replies, {"error": error_text(error)})
        else:
            _send(replies, {"shape": list(answer.shape)}, answer)


if __name__ == "__main__":
    _shift_clock()
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what plugins print does not reach the channel
    answer_requests(sys.stdin.buffer, channel)
