"""JSON values kept in files of the cache folder, each under a key that decides its content."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench.core.hashing import canonical, digest


def read_cached(path: Path, key: str) -> Any:
    """The value that a file holds under this key; None where it is missing, old or damaged."""
    try:
        stored = json.loads(path.read_bytes())
        return stored["body"] if stored["digest"] == digest([key, stored["body"]]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write_cached(path: Path, key: str, value: Any) -> None:
    """Replace a file in one step; nothing is kept in a folder that cannot be written to."""
    content = canonical({"body": value, "digest": digest([key, value])})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError:
        return
