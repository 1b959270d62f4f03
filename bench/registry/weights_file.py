"""Checks an untrusted safetensors file: header, layout, finite values. No torch."""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bench.registry.submission import MAX_FILE_BYTES

MAX_HEADER_BYTES = 16 << 20  # enough for a million tensors
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 64  # the limit of numpy
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
BLOCK_VALUES = 1 << 22  # values checked together


class UnsafeWeightsError(ValueError):
    """The file must not be loaded; the message is the end of a sentence that names the fault."""


def why_unsafe(path: Path) -> str:
    """Why a weights file must not be loaded, as a sentence, else empty; OSError is passed on."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES["weights.safetensors"]:
            raise UnsafeWeightsError(
                f"has {size} bytes; at most {MAX_FILE_BYTES['weights.safetensors']} are allowed"
            )
        with path.open("rb") as file:
            header, start = _header(file, size)
            for name, place in _places(header, size - start):
                _finite(file, start, name, place)
    except UnsafeWeightsError as error:
        return f"{path.name} {error}."
    return ""


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header, and the offset at which the values begin."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise UnsafeWeightsError(
            f"announces a header of {length} bytes, which the file is too small for"
        )
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_once)
    except UnsafeWeightsError:
        raise
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UnsafeWeightsError(f"has a header that is not JSON: {error}") from error
    except ValueError as error:
        raise UnsafeWeightsError(
            "has a number in its header that is too long to be parsed"
        ) from error
    if not isinstance(header, dict):
        raise UnsafeWeightsError("has a header that is not a table of tensors")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise UnsafeWeightsError(f"holds {len(header)} tensors; at most {MAX_TENSORS} are allowed")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise UnsafeWeightsError(f"names the key {_brief(key)} twice")
        table[key] = value
    return table


def _places(header: dict[str, Any], room: int) -> list[tuple[str, dict[str, Any]]]:
    """Tensors in file order, back to back from 0 to the end, each as large as its shape."""
    at = 0
    ordered = sorted(header.items(), key=lambda item: _offsets(*item))
    for name, tensor in ordered:
        begin, end = _offsets(name, tensor)
        length = _length(name, tensor, room)
        if begin != at or end - begin != length:
            raise UnsafeWeightsError(
                f"{_given(name, begin, end)}; from {at}, {length} bytes long, was expected"
            )
        at = end
    if at != room:
        raise UnsafeWeightsError(f"holds {room} bytes of values, its header describes {at}")
    return ordered


def _offsets(name: str, tensor: Any) -> tuple[int, int]:
    match tensor:
        case {"data_offsets": [int(begin), int(end)], "dtype": str(), "shape": list()}:
            return begin, end
    raise UnsafeWeightsError(f"describes {_brief(name)} without dtype, shape and data_offsets")


def _given(name: str, begin: int, end: int) -> str:
    return f"gives {_brief(name)} the bytes {_brief(begin)} to {_brief(end)}"


def _brief(value: object) -> str:
    """A value from the file, cut where it is long."""
    if isinstance(value, str) and len(value) <= 80:
        return repr(value)
    return reprlib.repr(value)


def _require_dimensions(shown: str, shape: list[int]) -> None:
    if len(shape) > MAX_DIMENSIONS:
        raise UnsafeWeightsError(
            f"gives {shown} {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed"
        )
    if not all(type(size) is int and size >= 0 for size in shape):
        raise UnsafeWeightsError(f"gives {shown} the shape {_brief(shape)}")


def _length(name: str, tensor: dict[str, Any], room: int) -> int:
    """Bytes of a tensor; dimensions larger than the file are refused before they are multiplied."""
    shape: list[int] = tensor["shape"]
    kind: str = tensor["dtype"]
    shown = _brief(name)
    if kind not in DTYPE_BYTES:
        raise UnsafeWeightsError(
            f"holds {shown} as {_brief(kind)}; known: {', '.join(DTYPE_BYTES)}"
        )
    _require_dimensions(shown, shape)
    if max(shape, default=0) > room:
        given = _given(name, *tensor["data_offsets"])
        raise UnsafeWeightsError(
            f"{given} and a dimension of {_brief(max(shape))}, more than the file has bytes"
        )
    return math.prod(shape) * DTYPE_BYTES[kind]


def _finite(file: BinaryIO, start: int, name: str, place: dict[str, Any]) -> None:
    """Raise UnsafeWeightsError where a tensor of floats holds NaN or infinity."""
    kind, (begin, end) = place["dtype"], place["data_offsets"]
    if kind not in ("F64", "F32", "F16", "BF16"):
        return
    file.seek(start + begin)
    left = end - begin
    while left:
        content = file.read(min(left, BLOCK_VALUES * DTYPE_BYTES[kind]))
        if not np.isfinite(_numbers(content, kind)).all():
            raise UnsafeWeightsError(f"holds values in {_brief(name)} that are not finite")
        left -= len(content)


def _numbers(content: bytes, kind: str) -> Any:
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(content, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[kind])
