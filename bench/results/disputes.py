"""Disputes of results: notes in a file beside the database, which pages show beside the row."""

from __future__ import annotations

import os
import tomllib
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.errors import BenchError
from bench.store.database import resolve_url, sqlite_file

DISPUTES_FILE = "disputes.toml"
"""Name of the file in the folder of a SQLite database."""
DISPUTES_VARIABLE = "BENCH_DISPUTES"
"""Environment variable with the path of the file, for a database server."""
LARGEST_FILE = 1 << 20
"""Bytes."""


class Dispute(BaseModel):
    """One objection to the results of a defense."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defense: str = Field(min_length=1)
    threat: str = ""
    """Name of the threat model; empty: all of them."""
    date: date
    by: str = Field(min_length=1)
    """Who objects."""
    text: str = Field(min_length=1, max_length=1000)
    answer: str = Field(default="", max_length=1000)
    """What the maintainers found; empty while it is open."""

    def is_about(self, defense: str, threat: str) -> bool:
        """Whether it concerns a defense under a threat model."""
        return self.defense == defense and self.threat in ("", threat)

    @property
    def sentence(self) -> str:
        """Date, author, objection and answer on one line."""
        state = f"Answer: {self.answer}" if self.answer else "Open."
        return f"{self.date} {self.by}: {self.text} {state}"


class _DisputesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dispute: tuple[Dispute, ...] = ()


def disputes_path(url: str | None) -> Path | None:
    """The file for a database: $BENCH_DISPUTES, else beside a SQLite file; None for a server."""
    if named := os.environ.get(DISPUTES_VARIABLE):
        return Path(named)
    database = sqlite_file(resolve_url(url))
    return None if database is None else database.with_name(DISPUTES_FILE)


def load_disputes(path: Path | None) -> tuple[Dispute, ...]:
    """The disputes in a file, the newest first; none where there is no file.

    Raises BenchError where the file is too large, no TOML, or a field is missing, unknown or of
    another type.
    """
    if path is None or not path.is_file():
        return ()
    if path.stat().st_size > LARGEST_FILE:
        raise BenchError(f"{path.name} has more than {LARGEST_FILE} bytes; no dispute was read.")
    try:
        found = _DisputesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path.name} is no TOML file ({error}); no dispute was read.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{path.name}: {where}: {first['msg']}; no dispute was read.") from error
    return tuple(sorted(found.dispute, key=lambda one: (-one.date.toordinal(), one.defense)))
