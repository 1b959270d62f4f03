"""Reads a checkpoint without running its code and fits its tensors to a module."""

from __future__ import annotations

import fnmatch
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bench.core.errors import BenchError, UnavailableError, error_text
from bench.registry.weights_file import why_unsafe

DEPTH = 3  # levels of tables in which a state dict is looked for
SHOWN = 6  # names that a message lists
COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that older checkpoints lack and that no answer in eval mode reads."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """How one table of tensors fits the state dict of a module."""

    key: str
    """Place of the table in the checkpoint; empty for the checkpoint itself."""
    prefix: str
    """What stands before every name."""
    found: dict[str, Tensor]
    """The tensors by the module's names."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shapes: tuple[str, ...]
    """Names whose tensors have another shape, with both shapes."""

    @property
    def complete(self) -> bool:
        """Whether every tensor has its place and every place its tensor."""
        return not (self.missing or self.unexpected or self.other_shapes)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint: tensors, numbers and tables, read without running any code.

    Raises UnavailableError where there is no such file, BenchError where it holds other objects or
    tensors that are not finite or larger than the file.
    """
    if not path.is_file():
        raise UnavailableError(f"there is no checkpoint {path}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise BenchError(f"{path} holds {type(content).__name__}; a state dict was expected.")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    wrong = why_unsafe(path)
    if wrong:
        raise BenchError(wrong)
    return safetensors.torch.load_file(path)


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on the protocol of the pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = error_text(error).split(" WeightsUnpickler error: ")[-1].split(" Please")[0]
        raise BenchError(
            f"{path} holds more than tensors and is not read ({reason[:120]}); save it again with "
            "torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise BenchError(f"{path} is no checkpoint of torch: {error_text(error)[:160]}.") from error


def fitting_tensors(
    content: Mapping[str, Any], expected: Tensors, *, key: str = "", ignore: Sequence[str] = ()
) -> Fit:
    """The one table of a checkpoint that fits a module.

    Args:
        content: what `read_checkpoint` returns.
        expected: the state dict of the module.
        key: the place of the table, as `state_dict`; empty: the one that fits.
        ignore: patterns of names that may stay unused, as `normalize.*`.

    Returns:
        The complete fit; tensors have the dtypes of the module.

    Raises:
        BenchError: none fits, with missing and unexpected names, or several do.
    """
    tables = {place: table for place, table in _tables(content) if key in ("", place)}
    if not tables:
        wanted = f" {key!r}" if key else ""
        raise BenchError(
            f"the checkpoint has no table of tensors{wanted}; it holds {_of(content)}."
        )
    fits = [_fit(place, table, expected, ignore) for place, table in tables.items()]
    complete = [fit for fit in fits if fit.complete]
    if len(complete) > 1:
        places = ", ".join(repr(fit.key) for fit in complete)
        raise BenchError(f"several tables of the checkpoint fit: {places}; choose one with --key.")
    if not complete:
        raise BenchError(_why_none(max(fits, key=lambda fit: len(fit.found))))
    for name, tensor in complete[0].found.items():
        _require_finite(name, tensor)
    return complete[0]


def _tables(content: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each table in a checkpoint that holds tensors by name, with its place."""
    own = {n: v for n, v in content.items() if isinstance(n, str) and isinstance(v, Tensor)}
    if own:
        yield place, own
    if place.count(".") + bool(place) < DEPTH:
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _tables(value, f"{place}.{name}" if place else name)


def _fit(place: str, table: Tensors, expected: Tensors, ignore: Sequence[str]) -> Fit:
    prefixes = {""} | {
        name.removesuffix(wanted)
        for name in table
        for wanted in expected
        if name.endswith(f".{wanted}")
    }
    # Of prefixes that fit equally many names the shortest is used.
    prefix = max(sorted(prefixes), key=lambda p: sum(f"{p}{name}" in table for name in expected))
    there = {name: table[f"{prefix}{name}"] for name in expected if f"{prefix}{name}" in table}
    found = {n: t.to(expected[n].dtype) for n, t in there.items() if t.shape == expected[n].shape}
    used = {f"{prefix}{name}" for name in there}
    return Fit(
        key=place,
        prefix=prefix,
        found=found,
        missing=tuple(n for n in expected if n not in there and not n.endswith(COUNTER)),
        unexpected=tuple(
            name
            for name in table
            if name not in used and not any(fnmatch.fnmatchcase(name, p) for p in ignore)
        ),
        other_shapes=tuple(
            f"{name} {list(tensor.shape)} for {list(expected[name].shape)}"
            for name, tensor in there.items()
            if name not in found
        ),
    )


def _why_none(nearest: Fit) -> str:
    place = f"table {nearest.key!r}" if nearest.key else "table of tensors"
    parts = [
        f"{len(names)} {what} ({_listed(names)})"
        for what, names in (
            ("missing", nearest.missing),
            ("unexpected", nearest.unexpected),
            ("of another shape", nearest.other_shapes),
        )
        if names
    ]
    prefix = f", without the prefix {nearest.prefix!r}" if nearest.prefix else ""
    return (
        f"no table of the checkpoint fits the architecture; the nearest, the {place}{prefix}, has "
        f"{len(nearest.found)} fitting tensors, {', '.join(parts)}{_hint(nearest)}."
    )


def _hint(nearest: Fit) -> str:
    """What to try, as the end of a sentence; empty where nothing is known."""
    small = "conv1.weight [64, 3, 3, 3] for [64, 3, 7, 7]"
    if any(entry.endswith(small) for entry in nearest.other_shapes):
        return "; use --small-images for a ResNet with a 3x3 first convolution"
    if nearest.unexpected and not (nearest.missing or nearest.other_shapes):
        normal = any(name.endswith(("mean", "std")) for name in nearest.unexpected)
        where = ", and give --mean and --std where they normalise" if normal else ""
        return f"; leave them out with --ignore PATTERN{where}"
    return "; name the architecture that was trained with --arch"


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _of(content: Mapping[str, Any]) -> str:
    return _listed([f"{name} ({type(value).__name__})" for name, value in content.items()])


def _require_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise BenchError(f"the tensor {name} of the checkpoint has values that are not finite.")
