"""Titles, authors and venues of the sources that the plugins of this project cite.

The table is papers.toml beside this module.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAPERS_FILE = Path(__file__).with_name("papers.toml")


@dataclass(frozen=True)
class Paper:
    """What a reference says beside the identifier of the source."""

    kind: str
    """The type of a BibTeX entry: `article`, `book`, `inproceedings` or `misc`."""
    title: str
    authors: tuple[str, ...]
    """`First Last`, or `Last, First` where the last name has several words."""
    year: int
    venue: str = ""
    """The conference, journal, publisher or series; empty for a preprint alone."""


@cache
def known_papers() -> Mapping[str, Paper]:
    """Every paper of the table by its source: `arXiv:ID`, `doi:ID` in lower case, or an address."""
    table = tomllib.loads(PAPERS_FILE.read_text(encoding="utf-8"))
    return {
        source: Paper(**{**fields, "authors": tuple(fields["authors"])})
        for source, fields in table.items()
    }
