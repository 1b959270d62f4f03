"""Exceptions that a model raises when the engine calls it, as sentences about the plugin."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import torch

import bench
from bench.core.errors import PluginError, error_text

REMEDIES = (
    (
        "leaf variable that requires grad",
        "it writes into the images that it was given; work on images.clone()",
    ),
    (
        "modified by an inplace operation",
        "it writes into a tensor that its gradient needs; work on a copy",
    ),
    (
        "does not require grad",
        "a gradient inside forward needs torch.enable_grad() around it and an input with "
        "requires_grad, because the model is also queried under torch.no_grad()",
    ),
    (
        "inference tensor",
        "its weights or inputs were made under torch.inference_mode(); make them outside of it",
    ),
    (
        "same dtype|should be the same|scalar type|mixed dtype",
        "images are float32 and so must the weights be; call .float() on the module in build",
    ),
    (
        "same device|different devices",
        "all its tensors must be on the device of the images; register them as buffers",
    ),
)
"""Pattern of a message of torch -> what to do about it."""

_LIBRARIES = tuple(
    Path(place)
    for place in (
        Path(bench.__file__).parent,
        Path(torch.__file__).parent,
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
    )
)


def plugin_error(what: str, error: BaseException) -> PluginError:
    """The error of a model, with the place where its code raised it and a remedy if one is known.

    Args:
        what: the model, as `the defense`.
        error: what a call of it raised.
    """
    text = error_text(error)
    kind, colon, rest = text.partition(": ")
    place = _place(error)
    sentence = f"{what} failed: {kind}{place}{colon}{rest}" if place else f"{what} failed: {text}"
    known = (remedy for part, remedy in REMEDIES if re.search(part, text, re.IGNORECASE))
    remedy = next(known, "")
    return PluginError(f"{sentence}: {remedy}." if remedy else f"{sentence}.")


def _place(error: BaseException) -> str:
    """The last file and line outside torch and the harness; empty where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        inside = any(path.is_relative_to(folder) for folder in _LIBRARIES)
        if frame.filename.startswith("<") or (inside and "site-packages" not in path.parts):
            continue
        if not path.is_relative_to(Path(torch.__file__).parent):
            return f" in {path.name}, line {frame.lineno}"
    return ""
