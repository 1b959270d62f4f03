"""The wire: what is sent is what comes, and nothing else comes at all."""

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
    HEAD,
    KINDS,
    MARK,
    WORDS,
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
    """One end that speaks frames, and the bare other one."""
    own, other = socket.socketpair()
    with own, other:
        yield Channel(own), other


def soon() -> float:
    return time.monotonic() + 0.2


def test_a_frame_comes_as_it_was_sent(ends: Ends) -> None:
    channel, other = ends
    Channel(other).send(7, {"do": "ü"}, b"one", bytearray(b"two"))
    number, words, body = channel.receive(6)
    assert (number, words, bytes(body)) == (7, {"do": "ü"}, b"onetwo")


def test_frames_do_not_run_into_each_other(ends: Ends) -> None:
    channel, other = ends
    for number in range(3):
        Channel(other).send(number, {}, bytes(number))
    assert [len(channel.receive(2).body) for _ in range(3)] == [0, 1, 2]


def test_the_largest_that_may_come_comes_and_a_byte_more_does_not(ends: Ends) -> None:
    channel, other = ends
    Channel(other).send(1, {}, bytes(100))
    Channel(other).send(2, {}, bytes(101))
    assert len(channel.receive(100).body) == 100
    with pytest.raises(BadFrameError, match=r"2 \+ 101 bytes was announced; 65536 \+ 100 may come"):
        channel.receive(100)


@pytest.mark.parametrize(
    "sent",
    [
        b"x" * HEAD.size,
        HEAD.pack(b"GNT0", 1, 2, 0) + b"{}",
        HEAD.pack(MARK, 1, 2, 0) + b"[]",
        HEAD.pack(MARK, 1, 2, 0) + b"{x",
        HEAD.pack(MARK, 1, 2, 0) + b"\xff\xfe",
        HEAD.pack(MARK, 1, WORDS + 1, 0),
        HEAD.pack(MARK, 1, 2, 2**63),
        HEAD.pack(MARK, 1, WORDS, 0) + b"[" * WORDS,
    ],
)
def test_what_is_no_frame_is_babble(ends: Ends, sent: bytes) -> None:
    channel, other = ends
    other.sendall(sent)
    with pytest.raises(BadFrameError):
        channel.receive(1000, soon())


@given(st.binary(max_size=200))
def test_whatever_comes_ends_in_a_wire_error_or_a_frame(sent: bytes) -> None:
    own, other = socket.socketpair()
    with own, other:
        other.sendall(sent)
        other.close()
        with pytest.raises((BadFrameError, ConnectionClosedError)):
            Channel(own).receive(0)


@pytest.mark.parametrize("cut", [0, 1, HEAD.size, HEAD.size + 1, HEAD.size + 3])
def test_half_a_frame_is_waited_for_until_the_time_is_over(ends: Ends, cut: int) -> None:
    channel, other = ends
    other.sendall((HEAD.pack(MARK, 1, 2, 4) + b"{}four")[:cut])
    since = time.monotonic()
    with pytest.raises(ReplyTimeoutError):
        channel.receive(4, soon())
    assert 0.1 < time.monotonic() - since < 2


def test_bytes_that_trickle_gain_no_time(ends: Ends) -> None:
    channel, other = ends
    frame = HEAD.pack(MARK, 1, 2, 0) + b"{}"

    def trickle() -> None:
        for byte in frame:
            other.sendall(bytes([byte]))
            time.sleep(0.05)

    sender = threading.Thread(target=trickle)
    sender.start()
    with pytest.raises(ReplyTimeoutError):
        channel.receive(0, soon())
    sender.join()


def test_who_has_gone_has_hung_up(ends: Ends) -> None:
    channel, other = ends
    other.sendall(HEAD.pack(MARK, 1, 2, 0))
    other.close()
    with pytest.raises(ConnectionClosedError):
        channel.receive(0)
    with pytest.raises(ConnectionClosedError):
        channel.send(1, {}, bytes(1 << 20))


def test_who_does_not_listen_is_given_up(ends: Ends) -> None:
    channel, _ = ends
    with pytest.raises(ReplyTimeoutError):
        channel.send(1, {}, bytes(1 << 24), until=soon())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 10), (0, 10), ()])
def test_tensors_cross_to_the_bit(kind: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255).to(KINDS[kind])
    words, content = encode_tensor(tensor)
    back = decode_tensor(json.loads(json.dumps(words)), bytearray(content))
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_a_tensor_that_does_not_lie_in_order_crosses_in_order() -> None:
    tensor = torch.arange(24.0).view(2, 3, 4).transpose(0, 2)
    words, content = encode_tensor(tensor)
    assert torch.equal(decode_tensor(words, bytearray(content)), tensor)


def test_numbers_of_other_types_do_not_cross() -> None:
    with pytest.raises(TypeError, match="complex64 does not cross"):
        encode_tensor(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ({}, 4),
        ({"kind": "float32"}, 4),
        ({"kind": "float32", "shape": "1"}, 4),
        ({"kind": "object", "shape": [1]}, 4),
        ({"kind": "float32", "shape": [2]}, 4),
        ({"kind": "float32", "shape": [1] * 9}, 4),
        ({"kind": "float32", "shape": [-1, -1]}, 4),
        ({"kind": "float32", "shape": [True]}, 4),
        ({"kind": "float32", "shape": [1.0]}, 4),
        ({"kind": "float32", "shape": [2**62, 4]}, 4),
        ({"kind": ["float32"], "shape": [1]}, 4),
    ],
)
def test_words_and_bytes_that_do_not_fit_are_babble(words: dict[str, object], size: int) -> None:
    with pytest.raises(BadFrameError):
        decode_tensor(words, bytearray(size))
