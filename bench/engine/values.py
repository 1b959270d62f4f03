"""Checks of the values that a plugin passes to the engine: what came, what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.core.errors import PluginError

IMAGE_RANK = 4


def description(value: Any) -> str:
    """A value in words: dtype, shape and device of a tensor or array, else its type."""
    if isinstance(value, Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{value.dtype} {list(value.shape)}{device}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a {type(value).__module__} array {value.dtype} {list(value.shape)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def checked_points(points: Any, like: Tensor, what: str) -> Tensor:
    """Points [n, ...] from a plugin, which in a norm ball are images, checked to be like `like`.

    Args:
        points: what the plugin passed.
        like: [n, ...]; has the expected shape, dtype and device.
        what: subject of the message, as `pgd.step returned`.

    Raises:
        PluginError: they are something else.
    """
    if (
        isinstance(points, Tensor)
        and points.shape == like.shape
        and points.dtype is like.dtype
        and points.device == like.device
    ):
        return points
    kind = "images" if like.dim() == IMAGE_RANK else "points"
    raise PluginError(
        f"{what} {description(points)}; {kind} {description(like)} were expected: "
        f"{_remedy(points, like)}."
    )


def _remedy(points: Any, like: Tensor) -> str:
    """What to do about points that are not like `like` [n, ...]."""
    if points is None:
        return "return a tensor"
    if not isinstance(points, Tensor):
        return "use torch.as_tensor(..., dtype=torch.float32)"
    if points.shape != like.shape:
        if like.dim() != IMAGE_RANK:
            return "begin at problem.ball.start(problem.x) or at a sample of the set"
        return "keep one row for each row of problem.x, in the same order and shape"
    return "convert them with .to(problem.x)"


def checked_state(state: Any, points: Tensor, what: str) -> Any:
    """A state from an attack: a tensor of points, or a NamedTuple that begins with them.

    Args:
        state: what the attack returned.
        points: [n, ...], those of the clean images.
        what: the method of the attack, as `pgd.step`.

    Raises:
        PluginError: it is something else, or a field has other rows.
    """
    fields = getattr(state, "_fields", ())
    if not (isinstance(state, tuple) and fields):
        return checked_points(state, points, f"{what} returned")
    for name, part in zip(fields, state, strict=True):
        if not isinstance(part, Tensor) or part.dim() == 0 or part.shape[0] != points.shape[0]:
            raise PluginError(
                f"{what} returned a state with {name} = {description(part)}; a tensor of "
                f"{points.shape[0]} rows was expected: put the rows first."
            )
    checked_points(state[0], points, f"{what} returned a state with {fields[0]} =")
    return state


def checked_column(
    value: Any, rows: int, what: str, dtype: torch.dtype | None = torch.bool
) -> Tensor:
    """A tensor [n] with one entry for each row, from a plugin.

    Args:
        value: what the plugin passed.
        rows: n.
        what: subject of the message, as `where is`.
        dtype: the expected dtype; None: any floating-point one.

    Raises:
        PluginError: it is something else.
    """
    fits = isinstance(value, Tensor) and value.shape == (rows,)
    if fits and (value.dtype is dtype or (dtype is None and value.is_floating_point())):
        column: Tensor = value
        return column
    wanted = "floating-point numbers" if dtype is None else str(dtype)
    raise PluginError(f"{what} {description(value)}; {wanted} [{rows}] was expected.")
