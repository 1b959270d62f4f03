"""Whose mistake an exception is: plugin, harness, infrastructure or user."""

from __future__ import annotations

import dis
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType

import torch

import bench
import plugins
from bench.core.cells import Culprit, Failure
from bench.core.errors import BenchError, PluginError
from bench.registry.loader import PLUGGY_PROJECT

HARNESS = Path(bench.__file__).parent
BUILT_IN = Path(plugins.__file__).parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def failure_of(error: BaseException) -> Failure:
    """Whose mistake an exception is, in one sentence."""
    text = " ".join(str(error).split())[:400].rstrip(".")
    if isinstance(error, PluginError):
        return Failure(Culprit.PLUGIN, f"{text}.")
    steps, plugged = _steps(error), (BUILT_IN, *_installed())
    culprits = [_culprit(_file(step), plugged) for step in steps]
    forged = bool(steps) and _raised(steps[-1]) and culprits[-1] is Culprit.PLUGIN
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not forged:
        return Failure(
            Culprit.INFRASTRUCTURE,
            "memory ran out; play with a smaller --batch or fewer --workers.",
        )
    if isinstance(error, BenchError) and not forged:
        return Failure(Culprit.USER, f"{text}.")
    own = [(step, whose) for step, whose in zip(steps, culprits, strict=True) if whose is not None]
    last, culprit = own[-1] if own else (steps[-1], Culprit.PLUGIN)
    place = f"{_file(last).name}, line {last.tb_lineno}"
    said = f"{type(error).__name__} in {place}"
    return Failure(culprit, f"{said}: {text}." if text else f"{said}.")


def _steps(error: BaseException) -> list[TracebackType]:
    """The way from where it was caught to where it was raised."""
    steps, step = [], error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    return steps


def _file(step: TracebackType) -> Path:
    return Path(step.tb_frame.f_code.co_filename)


def _raised(step: TracebackType) -> bool:
    """Whether a `raise` stands there; what a call inside torch raises has none."""
    return dis.opname[step.tb_frame.f_code.co_code[step.tb_lasti]] == "RAISE_VARARGS"


def _culprit(file: Path, plugged: Iterable[Path]) -> Culprit | None:
    """Who answers for a file, where plugins lie in `plugged`; None for libraries: they obey."""
    if any(map(file.is_relative_to, plugged)):
        return Culprit.PLUGIN
    if file.is_relative_to(HARNESS):
        return Culprit.HARNESS
    foreign = {"site-packages", "dist-packages"} & set(file.parts)
    if foreign or str(file).startswith("<") or any(map(file.is_relative_to, LIBRARIES)):
        return None
    return Culprit.PLUGIN


def _installed() -> list[Path]:
    """Where the installed plugins lie: the folder of each one's package, or its file."""
    names = {point.module for point in entry_points(group=PLUGGY_PROJECT)}
    parts = {part for name in names for part in (name.split(".")[0], name)}
    modules = [sys.modules[part] for part in parts if part in sys.modules]
    files = [Path(str(module.__file__)) for module in modules if getattr(module, "__file__", "")]
    return [file.parent if file.name == "__init__.py" else file for file in files]
