"""The worker's end of the line: answers to the harness, and wishes while a question waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.sandbox.protocol import Channel, Frame, decode_tensors, encode_tensors

LARGEST = 4 << 30  # bytes that the harness may send at once: it is trusted


class WorkerChannel:
    """One question at a time; its number stands on all that is said about it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.number = 0

    def listen(self) -> Frame:
        """The next question."""
        frame = self.channel.receive(LARGEST)
        self.number = frame.number
        return frame

    def reply(self, words: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """The answer to the question at hand."""
        told, parts = encode_tensors(tensors or {})
        self.channel.send(self.number, {**words, "tensors": told}, *parts)

    def wish(self, words: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Frame:
        """Ask the harness for something while the question at hand waits."""
        self.reply(words, tensors)
        return self.channel.receive(LARGEST)


def tensors_of(frame: Frame) -> dict[str, Tensor]:
    """The tensors of a frame, by name."""
    return decode_tensors(frame.words.get("tensors"), frame.body)
