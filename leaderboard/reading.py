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

Answer = TypeVar("Answer")

SQLITE = "sqlite:///"
DEFAULT = f"{SQLITE}bench.db"
REMOTE = 10  # seconds for which an answer from a database server is kept


def address() -> str:
    """Where the database is: BENCH_DB, else a file in the current folder."""
    return os.environ.get("BENCH_DB") or DEFAULT


def file(url: str) -> Path | None:
    """The database file; None on a server, or where the address is none."""
    path = url.removeprefix(SQLITE)
    return Path(path).expanduser() if url.startswith(SQLITE) and path else None


def present() -> bool:
    """False where the address is a file that is not there."""
    path = file(address())
    return path is None or path.exists()


def stamp(url: str) -> tuple[object, ...]:
    """Changes whenever the database may have changed."""
    path = file(url)
    if path is None:
        return (int(time.time()) // REMOTE,)
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


def _asked(ask: Callable[..., Answer], *rest: Any) -> Answer:
    url = address()
    answer: Answer = _answer(url, stamp(url), ask.__qualname__, rest, ask)
    return answer


def boards() -> list[Leaderboard]:
    """Every board, in display order."""
    return _asked(leaderboards.leaderboards)


def ranking(board: Leaderboard) -> list[RankingRow]:
    """The rows of a board, best first."""
    return _asked(rankings.ranking, board)


def row(board: Leaderboard, defense: str) -> RankingRow | None:
    """One defense's row of a board; None where it was not played there."""
    return next((row for row in ranking(board) if row.defense == defense), None)


def matrix(board: Leaderboard) -> list[MatrixCell]:
    """Every attack against every defense of a board."""
    return _asked(matrices.matrix, board)


def entry(board: Leaderboard, defense: str) -> DefenseReport:
    """One defense on one board: cells, curves, images."""
    return _asked(defense_report.defense_report, board, defense)


def cards(model: type[CardT]) -> list[CardT]:
    """The cards of one kind of plugin, given by the model of its cards."""
    found: list[CardT] = _asked(Store.cards, model)
    return found


def cells() -> list[CellRow]:
    """Every cell as it stands."""
    return _asked(Store.cells)


def examples(digest: str) -> ExamplesRow:
    """Labels and class names of an example set."""
    return _asked(Store.examples, digest)


def submissions() -> list[SubmissionRow]:
    """Every submission with its history."""
    return _asked(Store.submissions)
