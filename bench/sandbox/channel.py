"""The worker's end of the channel: replies to the harness, and requests made before a reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.sandbox.protocol import Channel, Frame, decode_tensors, encode_tensors

MAX_REQUEST_BYTES = 4 << 30  # of one frame of the harness, which is trusted


class WorkerChannel:
    """Handles one request of the harness at a time; its number is in every frame that follows."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.number = 0

    def next_request(self) -> Frame:
        """Wait for the next request of the harness."""
        frame = self.channel.receive(MAX_REQUEST_BYTES)
        self.number = frame.number
        return frame

    def reply(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Send the reply to the current request; `tensors` have any shape [*shape]."""
        descriptions, parts = encode_tensors(tensors or {})
        self.channel.send(self.number, {**header, "tensors": descriptions}, *parts)

    def request(
        self, header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> Frame:
        """Send a request with tensors [*shape] before the reply; returns the harness's answer."""
        self.reply(header, tensors)
        return self.channel.receive(MAX_REQUEST_BYTES)


def frame_tensors(frame: Frame) -> dict[str, Tensor]:
    """The tensors [*shape] of a frame, by name."""
    return decode_tensors(frame.header.get("tensors"), frame.body)
