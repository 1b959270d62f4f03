"""The protocol between the harness and a worker process: frames over one socket.

A frame is a prefix of fixed size, a JSON header and a binary body. The receiver states the largest
body that it accepts; a longer announced length is refused before memory is allocated for it.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

PREFIX = struct.Struct(">4sQIQ")  # magic, request number, bytes of the header, bytes of the body
MAGIC = b"GNT1"
MAX_HEADER = 1 << 16  # bytes

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32,
    torch.int64, torch.bool,
)}  # fmt: skip
"""The dtypes of tensors in a frame, by name."""
MAX_DIMS = 8  # of a tensor
MAX_DEPTH = 32  # of nested lists and objects in a header
MAX_ELEMENTS = 1 << 40  # of a tensor, where a dimension of size 0 counts as 1


class ProtocolError(Exception):
    """No valid frame was received."""


class ReplyTimeoutError(ProtocolError):
    """The time limit passed before a whole frame was received or sent."""


class ConnectionClosedError(ProtocolError):
    """The other end closed the connection."""


class BadFrameError(ProtocolError):
    """The received bytes are no frame, or a frame that is not valid at this point."""


class Frame(NamedTuple):
    """One message."""

    number: int
    """Number of the request that the frame belongs to."""
    header: dict[str, Any]
    body: bytearray


class Channel:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(
        self, number: int, header: Mapping[str, Any], *parts: Any, until: float | None = None
    ) -> None:
        """Send one frame; `parts` are bytes-like objects that together form its body.

        Raises ReplyTimeoutError after `until` (monotonic clock), ConnectionClosedError if closed,
        ValueError where a number of the header is not finite.
        """
        text = json.dumps(header, allow_nan=False).encode()
        size = sum(memoryview(part).nbytes for part in parts)
        try:
            for piece in (PREFIX.pack(MAGIC, number, len(text), size) + text, *parts):
                self._set_timeout(until)
                self.end.sendall(piece)
        except TimeoutError as error:
            raise ReplyTimeoutError from error
        except OSError as error:
            raise ConnectionClosedError from error

    def receive(self, largest: int, until: float | None = None) -> Frame:
        """Receive one frame whose body has at most `largest` bytes.

        Raises ReplyTimeoutError after the time `until` of the monotonic clock,
        ConnectionClosedError where the other end has closed the connection, BadFrameError for
        anything that is no such frame.
        """
        magic, number, length, body = PREFIX.unpack(self._exactly(PREFIX.size, until))
        if magic != MAGIC:
            raise BadFrameError("the received bytes are no frame")
        if length > MAX_HEADER or body > largest:
            raise BadFrameError(
                f"a frame of {length} + {body} bytes was announced; at most {MAX_HEADER} + "
                f"{largest} are accepted"
            )
        header = _parse_header(self._exactly(length, until))
        return Frame(number, header, self._exactly(body, until))

    def _exactly(self, count: int, until: float | None) -> bytearray:
        content = bytearray(count)
        view, received = memoryview(content), 0
        while received < count:
            self._set_timeout(until)
            try:
                read = self.end.recv_into(view[received:])
            except TimeoutError as error:
                raise ReplyTimeoutError from error
            except OSError as error:
                raise ConnectionClosedError from error
            if read == 0:
                raise ConnectionClosedError
            received += read
        return content

    def _set_timeout(self, until: float | None) -> None:
        """Limit the next call of the socket to the remaining time."""
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            raise ReplyTimeoutError
        self.end.settimeout(left)


def _parse_header(content: bytearray) -> dict[str, Any]:
    """The JSON object of these bytes. Raises BadFrameError where they are none.

    Names that occur twice, NaN, Infinity and halves of characters are no JSON (RFC 8259, RFC 7493).
    """
    try:
        header = json.loads(
            content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant,
            parse_float=_finite,
        )  # fmt: skip
        if b"\\u" in content:
            json.dumps(header, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadFrameError("the header of a frame is no JSON") from error
    if not isinstance(header, dict):
        raise BadFrameError("the header of a frame is no JSON object")
    if _is_deep(header):
        raise BadFrameError(f"the header of a frame has more than {MAX_DEPTH} levels")
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these pairs; raises ValueError where a name occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _is_deep(value: object) -> bool:
    """Whether a value of JSON has more than MAX_DEPTH levels."""
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        level = [part for inner in parts for part in inner]
    return any(isinstance(part, dict | list) for part in level)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    """The number; raises ValueError where it is too large for a float."""
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value


def encode_tensor(tensor: Tensor) -> tuple[dict[str, Any], memoryview]:
    """A tensor [*shape] as its description (dtype and shape) and its bytes.

    Raises TypeError where its dtype is not in DTYPES.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"{tensor.dtype} cannot be sent; use one of {', '.join(DTYPES)}")
    flat = tensor.detach().cpu().contiguous().flatten()
    return {"dtype": dtype, "shape": list(tensor.shape)}, flat.view(torch.uint8).numpy().data


def decode_tensor(description: Mapping[str, Any], body: bytearray) -> Tensor:
    """The tensor [*shape] with this description and these bytes.

    Raises BadFrameError where they do not match.
    """
    if _size(description) != len(body):
        raise BadFrameError(f"{len(body)} bytes were sent for a tensor of {_size(description)}")
    dtype, shape = DTYPES[description["dtype"]], description["shape"]
    if not body:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:  # a byte that is neither 0 nor 1 is no bool
        return torch.frombuffer(body, dtype=torch.uint8).view(shape) != 0
    return torch.frombuffer(body, dtype=dtype).view(shape)


def _size(description: Mapping[str, Any]) -> int:
    """Bytes of a tensor with this description."""
    dtype, shape = description.get("dtype"), description.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(shape, list):
        raise BadFrameError("a tensor was sent without a valid dtype and shape")
    if len(shape) > MAX_DIMS or not all(type(size) is int and size >= 0 for size in shape):
        raise BadFrameError("a tensor was sent with an invalid shape")
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:  # torch counts strides, too
        raise BadFrameError("a tensor was sent with a shape that is too large")
    return math.prod(shape) * DTYPES[dtype].itemsize


def encode_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[memoryview]]:
    """Tensors [*shape] as their descriptions by name, and the parts of one body."""
    pairs = {name: encode_tensor(tensor) for name, tensor in tensors.items()}
    descriptions = {name: description for name, (description, _) in pairs.items()}
    return descriptions, [part for _, part in pairs.values()]


def decode_tensors(descriptions: object, body: bytearray) -> dict[str, Tensor]:
    """The tensors [*shape] by name, from what `encode_tensors` returns.

    Raises BadFrameError where descriptions and body do not match.
    """
    if not isinstance(descriptions, dict) or not all(
        isinstance(description, dict) for description in descriptions.values()
    ):
        raise BadFrameError("tensors were sent without their descriptions")
    tensors, view, begin = {}, memoryview(body), 0
    for name, description in descriptions.items():
        size = _size(description)
        tensors[name] = decode_tensor(description, bytearray(view[begin : begin + size]))
        begin += size
    if begin != len(body):
        raise BadFrameError(f"{len(body)} bytes were sent for tensors of {begin}")
    return tensors
