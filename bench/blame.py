"""Whose mistake an exception is: plugin, harness, infrastructure or user."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

import bench
from bench.records import BenchError, Culprit, Failure, PluginError

PACKAGE = str(Path(bench.__file__).parent)


def blame(error: BaseException) -> Failure:
    """Whose mistake an exception is, in one sentence."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Failure(
            Culprit.INFRASTRUCTURE,
            "memory ran out; play with a smaller --batch or fewer --workers.",
        )
    text = " ".join(str(error).split())[:400].rstrip(".")
    if isinstance(error, PluginError):
        return Failure(Culprit.PLUGIN, f"{text}.")
    if isinstance(error, BenchError):
        return Failure(Culprit.USER, f"{text}.")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _foreign(frame.filename)]
    last = own[-1] if own else frames[-1]
    culprit = Culprit.HARNESS if last.filename.startswith(PACKAGE) else Culprit.PLUGIN
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return Failure(culprit, f"{type(error).__name__} in {place}: {text}.")


def _foreign(filename: str) -> bool:
    """Libraries do what they are told: the fault is with whoever called them."""
    return "site-packages" in filename or filename.startswith("<")
