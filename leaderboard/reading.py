"""Reads the database, read-only, and caches results until the database changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from bench.core.cards import CardT
from bench.core.errors import BenchError
from bench.results import (
    attack_findings,
    attack_report,
    cell_report,
    comparison,
    defense_report,
    json_report,
    leaderboard_cells,
    leaderboards,
    published,
    set_unions,
)
from bench.results import matrix as matrices
from bench.results import ranking as rankings
from bench.results.attack_report import AttackReport
from bench.results.cell_report import CellReport
from bench.results.citations import CitedCards, load_citations
from bench.results.comparison import EntryComparison
from bench.results.defense_report import DefenseReport
from bench.results.disputes import Dispute, disputes_path, load_disputes
from bench.results.leaderboards import Leaderboard
from bench.results.matrix import MatrixCell
from bench.results.published import ChangedCode, PublishedFacts, changed_code, mark_changed
from bench.results.ranking import RankingRow
from bench.results.set_unions import SetUnion
from bench.store import CellRow, ExamplesRow, Store, SubmissionRow
from bench.store.damage import explained_damage
from bench.store.database import DEFAULT_DATABASE, resolve_url, sqlite_file
from bench.store.published import address_for_readers, is_published

Result = TypeVar("Result")

CACHED_RESULTS = 256
REMOTE_SECONDS = 10  # for which results from a database server are cached


def database_address() -> str:
    """The database: a URL or path in $BENCH_DB, else a file in the current folder, else published.

    The address of a URL that names no database is returned as it is; opening it states the fault.
    """
    with suppress(BenchError):
        return address_for_readers()
    return os.environ.get("BENCH_DB") or DEFAULT_DATABASE


def database_file(url: str) -> Path | None:
    """The database file; None for a server, or an invalid URL."""
    with suppress(BenchError):
        return sqlite_file(resolve_url(url))
    return None


def database_exists() -> bool:
    """False where the URL names a file that does not exist."""
    path = database_file(database_address())
    return path is None or path.exists()


def database_stamp(url: str) -> tuple[object, ...]:
    """A value that differs whenever the database may have changed."""
    path = database_file(url)
    if path is None:
        return (int(time.time()) // REMOTE_SECONDS,)
    files = (path, path.with_name(f"{path.name}-wal"))
    facts = [each.stat() for each in files if each.exists()]
    return tuple((fact.st_ino, fact.st_mtime_ns, fact.st_size) for fact in facts)


@dataclass(frozen=True)
class _Reading:
    """A function of the store with its arguments, compared by their texts.

    A leaderboard holds mappings, so that it cannot be a key of a cache itself.
    """

    read: Callable[..., Any]
    text: str
    arguments: tuple[Any, ...] = field(compare=False)


@lru_cache(maxsize=CACHED_RESULTS)
def _cached(url: str, stamp: tuple[object, ...], reading: _Reading) -> Any:
    with explained_damage(url), Store.open(url, read_only=True) as store:
        return reading.read(store, *reading.arguments)


def _call(read: Callable[..., Result], *arguments: Any) -> Result:
    """The result, read once while the database is the same; a shared record, never changed."""
    url = database_address()
    reading = _Reading(read, repr(arguments), arguments)
    result: Result = _cached(url, database_stamp(url), reading)
    return result


def read_published() -> PublishedFacts | None:
    """Where the published results come from; None where another database is shown."""
    url = database_address()
    with suppress(BenchError):
        if is_published(resolve_url(url)):
            return _call(published.published_facts)
    return None


@cache
def read_changed_code() -> ChangedCode:
    """The code that has changed since the published results were made."""
    return changed_code()


def is_readable() -> bool:
    """Whether the database can be opened and read."""
    try:
        read_root()
    except BenchError:
        return False
    return True


def read_disputes() -> tuple[Dispute, ...]:
    """The disputes of the shown database; raises BenchError where their file is wrong."""
    return load_disputes(disputes_path(database_address()))


def read_root() -> str:
    """The root of all results."""
    return _call(Store.root)


def read_leaderboards() -> list[Leaderboard]:
    """Every leaderboard, in display order."""
    return _call(leaderboards.leaderboards)


def read_ranking(leaderboard: Leaderboard) -> list[RankingRow]:
    """The rows of a leaderboard, best first; published ones of changed code are marked."""
    return _marked(leaderboard, _call(rankings.load_ranking, leaderboard))


def _marked(leaderboard: Leaderboard, rows: list[RankingRow]) -> list[RankingRow]:
    facts = read_published()
    if facts is None:
        return rows
    return mark_changed(rows, read_changed_code(), leaderboard.required, facts.date)


def read_row(leaderboard: Leaderboard, defense: str) -> RankingRow | None:
    """The row of one defense; None where it has none."""
    return next((row for row in read_ranking(leaderboard) if row.defense == defense), None)


def read_matrix(leaderboard: Leaderboard) -> list[MatrixCell]:
    """Every attack against every defense of a leaderboard."""
    return _call(matrices.load_matrix, leaderboard)


def read_newest(leaderboard: Leaderboard) -> float | None:
    """Unix time of the newest finished cell of a leaderboard; None without one."""
    return _call(leaderboard_cells.newest_result, leaderboard)


def _json_report(store: Store, leaderboard: Leaderboard) -> dict[str, Any]:
    return json_report.json_report(store, leaderboard=leaderboard)


def read_json_report(leaderboard: Leaderboard) -> dict[str, Any]:
    """The document that `bench report --json` prints of a leaderboard."""
    return _call(_json_report, leaderboard)


def read_attack_warnings(leaderboard: Leaderboard) -> dict[str, str]:
    """Attack -> sentence, for the attacks whose results depend on their batch."""
    return _call(attack_findings.load_attack_warnings, leaderboard)


def read_defense_report(leaderboard: Leaderboard, defense: str) -> DefenseReport:
    """Cells, curves and images of one defense on a leaderboard."""
    report = _call(defense_report.defense_report, leaderboard, defense)
    (row,) = _marked(leaderboard, [report.row])
    return replace(report, row=row)


def read_attack_names(leaderboard: Leaderboard) -> list[str]:
    """The attacks with a finished cell on a leaderboard, required ones first."""
    return _call(attack_report.load_attack_names, leaderboard)


def read_attack_report(leaderboard: Leaderboard, attack: str) -> AttackReport:
    """What one attack breaks on a leaderboard, and what that costs."""
    return _call(attack_report.load_attack_report, leaderboard, attack)


def read_cell_report(key: str) -> CellReport:
    """The one cell whose key begins with `key`; raises BenchError if not exactly one."""
    return _call(cell_report.load_cell_report, key)


def read_comparison(leaderboard: Leaderboard, defenses: tuple[str, ...]) -> EntryComparison:
    """Defenses on the same examples; raises BenchError where they cannot be compared."""
    return _call(comparison.load_defense_comparison, leaderboard, defenses)


def read_set_union(leaderboard: Leaderboard) -> SetUnion:
    """The score over several sets of the data set and the order of a leaderboard."""
    return _call(set_unions.load_set_union, leaderboard.dataset, leaderboard.example_order)


def read_cards(model: type[CardT]) -> list[CardT]:
    """The cards of one kind of plugin, given by the model of its cards."""
    found: list[CardT] = _call(Store.cards, model)
    return found


def read_cells() -> list[CellRow]:
    """Every cell with its current state."""
    return _call(Store.cells)


def read_citations() -> CitedCards:
    """The BibTeX entries of everything that has a finished cell."""
    return _call(load_citations)


def read_examples(digest: str) -> ExamplesRow:
    """Labels and class names of an example set."""
    return _call(Store.examples, digest)


def read_submissions() -> list[SubmissionRow]:
    """Every submission with its history."""
    return _call(Store.submissions)
