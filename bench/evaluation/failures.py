"""Attributes an exception to the plugin, the harness, the infrastructure or the user."""

from __future__ import annotations

import dis
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType

import torch

import bench
import plugins
from bench.core.cells import Culprit, Failure
from bench.core.errors import BenchError, PluginError, StorageError
from bench.core.visible_text import encodable_text
from bench.registry.loader import PLUGGY_PROJECT

HARNESS_FOLDER = Path(bench.__file__).parent
PLUGIN_FOLDER = Path(plugins.__file__).parent
CONTRACT_FILES = (
    "plugin", "threats", "engine/attack_view.py", "engine/problem.py", "engine/values.py",
    "engine/external_model.py",
)  # fmt: skip
"""Files and folders of the harness whose functions plugins call with values of their own."""
LIBRARY_FOLDERS = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


_OUT_OF_MEMORY = Failure(
    Culprit.INFRASTRUCTURE, "memory ran out; run with a smaller --batch or fewer --workers."
)


def failure_of(error: BaseException) -> Failure:
    """The cause of an exception in one sentence, and whose fault it is."""
    text = " ".join(encodable_text(str(error)).split())[:400].rstrip(".")
    if isinstance(error, PluginError):
        return Failure(Culprit.PLUGIN, f"{text}.")
    frames, folders = _frames(error), (PLUGIN_FOLDER, *_installed_plugin_folders())
    culprits = [_culprit(_file(frame), folders) for frame in frames]
    # A plugin may raise an exception of the harness itself; then it is the plugin's fault.
    by_plugin = bool(frames) and _is_raise(frames[-1]) and culprits[-1] is Culprit.PLUGIN
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if (no_memory or "DefaultCPUAllocator" in text) and not by_plugin:
        return _OUT_OF_MEMORY
    if isinstance(error, StorageError) and not by_plugin:
        return Failure(Culprit.INFRASTRUCTURE, f"{text}.")
    if isinstance(error, BenchError) and not by_plugin:
        return Failure(Culprit.USER, f"{text}.")
    known = [(f, whose) for f, whose in zip(frames, culprits, strict=True) if whose is not None]
    last, culprit = _responsible(known) if known else (frames[-1], Culprit.PLUGIN)
    reason = f"{type(error).__name__} in {_file(last).name}, line {last.tb_lineno}"
    return Failure(culprit, f"{reason}: {text}." if text else f"{reason}.")


def _responsible(known: Sequence[tuple[TracebackType, Culprit]]) -> tuple[TracebackType, Culprit]:
    """The frame at fault: the last one, or the plugin's that passed a wrong value to its contract.

    An error in what a plugin calls, as a projection of images of another shape, is the plugin's.
    """
    before = [place for place, (_, whose) in enumerate(known) if whose is Culprit.PLUGIN]
    called = known[before[-1] + 1 :] if before else known
    if before and all(_is_contract(_file(frame)) for frame, _ in called):
        return known[before[-1]]
    return known[-1]


def _is_contract(file: Path) -> bool:
    """Whether plugins call the functions of a file of the harness."""
    return any(file.is_relative_to(HARNESS_FOLDER / name) for name in CONTRACT_FILES)


def _frames(error: BaseException) -> list[TracebackType]:
    """The traceback entries, from where the exception was caught to where it was raised."""
    frames, frame = [], error.__traceback__
    while frame is not None:
        frames.append(frame)
        frame = frame.tb_next
    return frames


def _file(frame: TracebackType) -> Path:
    return Path(frame.tb_frame.f_code.co_filename)


def _is_raise(frame: TracebackType) -> bool:
    """Whether the frame ended at a `raise` statement, and not at a call into compiled code."""
    return dis.opname[frame.tb_frame.f_code.co_code[frame.tb_lasti]] == "RAISE_VARARGS"


def _culprit(file: Path, plugin_folders: Iterable[Path]) -> Culprit | None:
    """Who is at fault for an error in a file; None for a library, where its caller is."""
    if any(map(file.is_relative_to, plugin_folders)):
        return Culprit.PLUGIN
    if file.is_relative_to(HARNESS_FOLDER):
        return Culprit.HARNESS
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    if installed or str(file).startswith("<") or any(map(file.is_relative_to, LIBRARY_FOLDERS)):
        return None
    return Culprit.PLUGIN


def _installed_plugin_folders() -> list[Path]:
    """The package folder of each installed plugin, or its file where it is a single module."""
    names = {point.module for point in entry_points(group=PLUGGY_PROJECT)}
    parts = {part for name in names for part in (name.split(".")[0], name)}
    modules = [sys.modules[part] for part in parts if part in sys.modules]
    files = [Path(str(module.__file__)) for module in modules if getattr(module, "__file__", "")]
    return [file.parent if file.name == "__init__.py" else file for file in files]
