"""The published database: results that come with the project, which nothing writes into."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from sqlalchemy.engine import URL

from bench.store.database import (
    DEFAULT_DATABASE,
    file_identity,
    resolve_url,
    sqlite_file,
)

OR_PUBLISHED = "BENCH_OR_PUBLISHED"
"""Environment variable: where it is set, a reader without a database opens the published one."""


def published_database() -> Path:
    """The file of the published database, beside the pages that show it."""
    return Path(str(files("leaderboard"))) / "published" / "results.db"


def is_published(url: URL) -> bool:
    """Whether a URL names the published database, by whatever path."""
    path = sqlite_file(url)
    found = path and file_identity(path)
    return found is not None and found == file_identity(published_database())


def address_for_readers() -> str:
    """The database that the pages open, as a URL or path.

    It is $BENCH_DB, else bench.db in the current folder. Where that file does not exist and
    $BENCH_OR_PUBLISHED is set, it is the published database.
    """
    chosen = os.environ.get("BENCH_DB") or DEFAULT_DATABASE
    published = published_database()
    if not os.environ.get(OR_PUBLISHED) or not published.is_file():
        return chosen
    path = sqlite_file(resolve_url(chosen))
    return chosen if path is None or path.exists() else f"sqlite:///{published}"
