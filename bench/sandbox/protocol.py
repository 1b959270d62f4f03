"""Frames over one socket: a header of fixed size, a little JSON, raw bytes. Both ends speak it.

Whoever receives says how much may come: a length that the other end announces is only ever
compared with that, never believed.
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

HEAD = struct.Struct(">4sQIQ")  # mark, number, bytes of JSON, bytes behind it
MARK = b"GNT1"
WORDS = 1 << 16  # bytes of JSON in a frame at most

KINDS = {str(kind).removeprefix("torch."): kind for kind in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32,
    torch.int64, torch.bool,
)}  # fmt: skip
"""The types of number that cross."""
MOST = 8  # dimensions of a tensor


class ProtocolError(Exception):
    """No frame came."""


class ReplyTimeoutError(ProtocolError):
    """The time was over."""


class ConnectionClosedError(ProtocolError):
    """The other end has gone."""


class BadFrameError(ProtocolError):
    """What came is no frame, or not one that may come now."""


class Frame(NamedTuple):
    """One message."""

    number: int
    """Of the request that it belongs to."""
    words: dict[str, Any]
    body: bytearray


class Channel:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(
        self, number: int, words: Mapping[str, Any], *parts: Any, until: float | None = None
    ) -> None:
        """Write one frame; `parts` are bytes-like and follow each other in its body."""
        text = json.dumps(words).encode()
        size = sum(memoryview(part).nbytes for part in parts)
        try:
            for piece in (HEAD.pack(MARK, number, len(text), size) + text, *parts):
                self._limit(until)
                self.end.sendall(piece)
        except TimeoutError as error:
            raise ReplyTimeoutError from error
        except OSError as error:
            raise ConnectionClosedError from error

    def receive(self, largest: int, until: float | None = None) -> Frame:
        """Read one frame whose body has at most `largest` bytes.

        SilenceError after the moment `until` of the monotonic clock, HangupError where the other
        end has gone, BabbleError where something else than such a frame comes.
        """
        mark, number, words, body = HEAD.unpack(self._exactly(HEAD.size, until))
        if mark != MARK:
            raise BadFrameError("what came is no frame")
        if words > WORDS or body > largest:
            raise BadFrameError(
                f"a frame of {words} + {body} bytes was announced; {WORDS} + {largest} may come"
            )
        try:
            said = json.loads(self._exactly(words, until).decode())
        except (ValueError, RecursionError) as error:
            raise BadFrameError("the words of a frame are no JSON") from error
        if not isinstance(said, dict):
            raise BadFrameError("the words of a frame are no JSON object")
        return Frame(number, said, self._exactly(body, until))

    def _exactly(self, count: int, until: float | None) -> bytearray:
        content = bytearray(count)
        view, there = memoryview(content), 0
        while there < count:
            self._limit(until)
            try:
                read = self.end.recv_into(view[there:])
            except TimeoutError as error:
                raise ReplyTimeoutError from error
            except OSError as error:
                raise ConnectionClosedError from error
            if read == 0:
                raise ConnectionClosedError
            there += read
        return content

    def _limit(self, until: float | None) -> None:
        """How long the next call of the socket may wait."""
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            raise ReplyTimeoutError
        self.end.settimeout(left)


def encode_tensor(tensor: Tensor) -> tuple[dict[str, Any], memoryview]:
    """A tensor as words and bytes; TypeError where its numbers are of no type that crosses."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in KINDS:
        raise TypeError(f"{tensor.dtype} does not cross; {', '.join(KINDS)} do")
    flat = tensor.detach().cpu().contiguous().flatten()
    return {"kind": kind, "shape": list(tensor.shape)}, flat.view(torch.uint8).numpy().data


def decode_tensor(words: Mapping[str, Any], body: bytearray) -> Tensor:
    """The tensor that words and bytes stand for; BabbleError where they do not fit each other."""
    if _size(words) != len(body):
        raise BadFrameError(f"{len(body)} bytes came for a tensor of {_size(words)}")
    kind, shape = KINDS[words["kind"]], words["shape"]
    if not body:
        return torch.empty(shape, dtype=kind)
    if kind is torch.bool:  # a byte that is neither 0 nor 1 is no bool
        return torch.frombuffer(body, dtype=torch.uint8).view(shape) != 0
    return torch.frombuffer(body, dtype=kind).view(shape)


def _size(words: Mapping[str, Any]) -> int:
    """Bytes of the tensor that these words announce."""
    kind, shape = words.get("kind"), words.get("shape")
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(shape, list):
        raise BadFrameError("a tensor came without a shape and a type of number")
    if len(shape) > MOST or not all(type(size) is int and size >= 0 for size in shape):
        raise BadFrameError("a tensor came with a shape that is none")
    return math.prod(shape) * KINDS[kind].itemsize


def encode_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[memoryview]]:
    """Several tensors as words and the parts of one body."""
    pairs = {name: encode_tensor(tensor) for name, tensor in tensors.items()}
    return {name: words for name, (words, _) in pairs.items()}, [part for _, part in pairs.values()]


def decode_tensors(words: object, body: bytearray) -> dict[str, Tensor]:
    """The tensors that `packed` made into this; BabbleError where they do not fit each other."""
    if not isinstance(words, dict) or not all(isinstance(said, dict) for said in words.values()):
        raise BadFrameError("tensors came without their names")
    tensors, view, begin = {}, memoryview(body), 0
    for name, said in words.items():
        size = _size(said)
        tensors[name] = decode_tensor(said, bytearray(view[begin : begin + size]))
        begin += size
    if begin != len(body):
        raise BadFrameError(f"{len(body)} bytes came for tensors of {begin}")
    return tensors
