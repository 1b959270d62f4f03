"""Isolation of a plugin's code: in process, sandboxed, or unsandboxed."""

from __future__ import annotations

from enum import StrEnum


class Isolation(StrEnum):
    """Where the code of a plugin runs, the most trusted first."""

    IN_PROCESS = "in-process"
    """In the harness's process: built in, installed by the user, or reviewed."""
    SANDBOXED = "sandboxed"
    """In a worker process without network, files or rights."""
    UNSANDBOXED = "unsandboxed"
    """In the harness's process although it is not trusted, by --allow-unsandboxed."""
