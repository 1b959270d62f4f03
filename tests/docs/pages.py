"""Reads the fenced blocks of README and documentation pages, in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHELL = ("bash", "console", "sh", "shell")
FENCE = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
"""A block; a comment above it names the file that the reader writes it to."""


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    text: str
    file: str = ""
    """The file that the page tells the reader to write; empty where the block is no file."""

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, continuation lines joined."""
        if self.language not in SHELL:
            return []
        joined = self.text.replace("\\\n", " ")
        lines = [line.split(" #")[0].strip() for line in joined.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, named by its path from the root of the repository."""
    return [
        Block(found["language"], found["text"], found["file"] or "")
        for found in FENCE.finditer((ROOT / page).read_text())
    ]


def pages() -> list[str]:
    """Every page with a shell block, as a path from the root of the repository."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "submissions" / "README.md"]
    found += sorted(DOCS.rglob("*.md"))
    names = [str(path.relative_to(ROOT)) for path in found]
    return [name for name in names if any(block.commands for block in blocks(name))]
