"""The protocol: frames and tensors arrive unchanged, and invalid bytes are refused.

Covers bench.sandbox.channel too.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.sandbox.protocol import (
    DTYPES,
    MAGIC,
    MAX_HEADER,
    PREFIX,
    BadFrameError,
    Channel,
    ConnectionClosedError,
    ReplyTimeoutError,
    decode_tensor,
    encode_tensor,
)

Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A channel, and the socket at its other end."""
    own, other = socket.socketpair()
    with own, other:
        yield Channel(own), other


def soon() -> float:
    return time.monotonic() + 0.2


def test_a_frame_is_received_as_it_was_sent(ends: Ends) -> None:
    channel, other = ends
    Channel(other).send(7, {"method": "ü"}, b"one", bytearray(b"two"))
    number, header, body = channel.receive(6)
    assert (number, header, bytes(body)) == (7, {"method": "ü"}, b"onetwo")


def test_consecutive_frames_are_separated(ends: Ends) -> None:
    channel, other = ends
    for number in range(3):
        Channel(other).send(number, {}, bytes(number))
    assert [len(channel.receive(2).body) for _ in range(3)] == [0, 1, 2]


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(ends: Ends) -> None:
    channel, other = ends
    Channel(other).send(1, {}, bytes(100))
    Channel(other).send(2, {}, bytes(101))
    assert len(channel.receive(100).body) == 100
    with pytest.raises(BadFrameError, match=r"2 \+ 101 bytes was announced; at most 65536 \+ 100"):
        channel.receive(100)


@pytest.mark.parametrize(
    "sent",
    [
        b"x" * PREFIX.size,
        PREFIX.pack(b"GNT0", 1, 2, 0) + b"{}",
        PREFIX.pack(MAGIC, 1, 2, 0) + b"[]",
        PREFIX.pack(MAGIC, 1, 2, 0) + b"{x",
        PREFIX.pack(MAGIC, 1, 2, 0) + b"\xff\xfe",
        PREFIX.pack(MAGIC, 1, MAX_HEADER + 1, 0),
        PREFIX.pack(MAGIC, 1, 2, 2**63),
        PREFIX.pack(MAGIC, 1, MAX_HEADER, 0) + b"[" * MAX_HEADER,
    ],
)
def test_invalid_frames_are_refused(ends: Ends, sent: bytes) -> None:
    channel, other = ends
    other.sendall(sent)
    with pytest.raises(BadFrameError):
        channel.receive(1000, soon())


@given(st.binary(max_size=200))
def test_random_bytes_raise_a_protocol_error(sent: bytes) -> None:
    own, other = socket.socketpair()
    with own, other:
        other.sendall(sent)
        other.close()
        with pytest.raises((BadFrameError, ConnectionClosedError)):
            Channel(own).receive(0)


@pytest.mark.parametrize("cut", [0, 1, PREFIX.size, PREFIX.size + 1, PREFIX.size + 3])
def test_an_incomplete_frame_times_out(ends: Ends, cut: int) -> None:
    channel, other = ends
    other.sendall((PREFIX.pack(MAGIC, 1, 2, 4) + b"{}four")[:cut])
    since = time.monotonic()
    with pytest.raises(ReplyTimeoutError):
        channel.receive(4, soon())
    assert 0.1 < time.monotonic() - since < 2


def test_slowly_sent_bytes_do_not_extend_the_time_limit(ends: Ends) -> None:
    channel, other = ends
    frame = PREFIX.pack(MAGIC, 1, 2, 0) + b"{}"

    def send_slowly() -> None:
        for byte in frame:
            other.sendall(bytes([byte]))
            time.sleep(0.05)

    sender = threading.Thread(target=send_slowly)
    sender.start()
    with pytest.raises(ReplyTimeoutError):
        channel.receive(0, soon())
    sender.join()


def test_a_closed_connection_is_reported(ends: Ends) -> None:
    channel, other = ends
    other.sendall(PREFIX.pack(MAGIC, 1, 2, 0))
    other.close()
    with pytest.raises(ConnectionClosedError):
        channel.receive(0)
    with pytest.raises(ConnectionClosedError):
        channel.send(1, {}, bytes(1 << 20))


def test_sending_to_an_end_that_does_not_read_times_out(ends: Ends) -> None:
    channel, _ = ends
    with pytest.raises(ReplyTimeoutError):
        channel.send(1, {}, bytes(1 << 24), until=soon())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 10), (0, 10), ()])
def test_tensors_are_sent_bit_for_bit(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255).to(DTYPES[dtype])
    description, content = encode_tensor(tensor)
    back = decode_tensor(json.loads(json.dumps(description)), bytearray(content))
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_a_transposed_tensor_is_sent_in_order() -> None:
    tensor = torch.arange(24.0).view(2, 3, 4).transpose(0, 2)
    description, content = encode_tensor(tensor)
    assert torch.equal(decode_tensor(description, bytearray(content)), tensor)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="complex64 cannot be sent"):
        encode_tensor(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("description", "size"),
    [
        ({}, 4),
        ({"dtype": "float32"}, 4),
        ({"dtype": "float32", "shape": "1"}, 4),
        ({"dtype": "object", "shape": [1]}, 4),
        ({"dtype": "float32", "shape": [2]}, 4),
        ({"dtype": "float32", "shape": [1] * 9}, 4),
        ({"dtype": "float32", "shape": [-1, -1]}, 4),
        ({"dtype": "float32", "shape": [True]}, 4),
        ({"dtype": "float32", "shape": [1.0]}, 4),
        ({"dtype": "float32", "shape": [2**62, 4]}, 4),
        ({"dtype": ["float32"], "shape": [1]}, 4),
    ],
)
def test_a_description_that_does_not_match_the_bytes_is_refused(
    description: dict[str, object], size: int
) -> None:
    with pytest.raises(BadFrameError):
        decode_tensor(description, bytearray(size))
