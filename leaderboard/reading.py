"""The one reader: opens the database read-only, answers from memory until the database changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import streamlit as st

from bench.core.cards import CardT
from bench.results import defense_report, leaderboards
from bench.results import matrix as matrices
from bench.results import ranking as rankings
from bench.results.defense_report import DefenseReport
from bench.results.leaderboards import Leaderboard
from bench.results.matrix import MatrixCell
from bench.results.ranking import RankingRow
from bench.store import CellRow, ExamplesRow, Store, SubmissionRow

Result = TypeVar("Result")

SQLITE_PREFIX = "sqlite:///"
DEFAULT_ADDRESS = f"{SQLITE_PREFIX}bench.db"
REMOTE_SECONDS = 10  # seconds for which an answer from a database server is kept


def database_address() -> str:
    """Where the database is: BENCH_DB, else a file in the current folder."""
    return os.environ.get("BENCH_DB") or DEFAULT_ADDRESS


def database_file(url: str) -> Path | None:
    """The database file; None on a server, or where the address is none."""
    path = url.removeprefix(SQLITE_PREFIX)
    return Path(path).expanduser() if url.startswith(SQLITE_PREFIX) and path else None


def database_exists() -> bool:
    """False where the address is a file that is not there."""
    path = database_file(database_address())
    return path is None or path.exists()


def database_stamp(url: str) -> tuple[object, ...]:
    """Changes whenever the database may have changed."""
    path = database_file(url)
    if path is None:
        return (int(time.time()) // REMOTE_SECONDS,)
    files = (path, path.with_name(f"{path.name}-wal"))
    facts = [each.stat() for each in files if each.exists()]
    return tuple((fact.st_ino, fact.st_mtime_ns, fact.st_size) for fact in facts)


@st.cache_data(show_spinner=False, max_entries=256)
def _answer(
    url: str,
    seen: tuple[object, ...],
    question: str,
    rest: tuple[Any, ...],
    _ask: Callable[..., Any],
) -> Any:
    with Store.open(url, read_only=True) as store:
        return _ask(store, *rest)


def _asked(ask: Callable[..., Result], *rest: Any) -> Result:
    url = database_address()
    answer: Result = _answer(url, database_stamp(url), ask.__qualname__, rest, ask)
    return answer


def read_leaderboards() -> list[Leaderboard]:
    """Every board, in display order."""
    return _asked(leaderboards.leaderboards)


def read_ranking(board: Leaderboard) -> list[RankingRow]:
    """The rows of a board, best first."""
    return _asked(rankings.load_ranking, board)


def read_row(board: Leaderboard, defense: str) -> RankingRow | None:
    """One defense's row of a board; None where it was not played there."""
    return next((row for row in read_ranking(board) if row.defense == defense), None)


def read_matrix(board: Leaderboard) -> list[MatrixCell]:
    """Every attack against every defense of a board."""
    return _asked(matrices.load_matrix, board)


def read_defense_report(board: Leaderboard, defense: str) -> DefenseReport:
    """One defense on one board: cells, curves, images."""
    return _asked(defense_report.defense_report, board, defense)


def read_cards(model: type[CardT]) -> list[CardT]:
    """The cards of one kind of plugin, given by the model of its cards."""
    found: list[CardT] = _asked(Store.cards, model)
    return found


def read_cells() -> list[CellRow]:
    """Every cell as it stands."""
    return _asked(Store.cells)


def read_examples(digest: str) -> ExamplesRow:
    """Labels and class names of an example set."""
    return _asked(Store.examples, digest)


def read_submissions() -> list[SubmissionRow]:
    """Every submission with its history."""
    return _asked(Store.submissions)
