"""Folders that the harness reads and writes outside the database."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for this program; this function does not create it."""
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "gauntlet"


def submissions_folder() -> Path:
    """The folder of submissions: $BENCH_SUBMISSIONS, else ./submissions."""
    return Path(os.environ.get("BENCH_SUBMISSIONS", "submissions"))
