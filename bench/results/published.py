"""The published results: when, where and with which code they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.results.ranking import RankingRow
from bench.results.row_versions import is_done
from bench.results.version_notes import RowVersions
from bench.store import Store
from bench.store.published import published_database

LISTED = 8
"""Plugins that a sentence names."""


@dataclass(frozen=True)
class PublishedFacts:
    """Where published results come from."""

    date: str
    """Day (UTC) of the newest cell."""
    machines: tuple[str, ...]
    """The machine classes of all cells."""
    root: str
    """The root of all results."""


@dataclass(frozen=True)
class ChangedCode:
    """The code that is no longer what it was when the published results were made."""

    attacks: frozenset[str] = frozenset()
    defenses: frozenset[str] = frozenset()
    evaluation: bool = False
    """Whether the engine, the referee or the perturbation sets have changed."""


@dataclass(frozen=True)
class SourceRecord:
    """The source files of the plugins and of the evaluation, with their digests."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Path from the root of the project -> SHA-256, with line ends as `\\n`."""
    attack: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Attack -> paths."""
    defense: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Defense -> paths."""
    evaluation: Sequence[str] = ()

    def changed(self, root: Path) -> ChangedCode:
        """What has changed in a project's folder; a missing file counts as changed."""
        other = {name for name, digest in self.files.items() if file_digest(root / name) != digest}

        def touched(table: Mapping[str, Sequence[str]]) -> frozenset[str]:
            return frozenset(name for name, paths in table.items() if other & set(paths))

        return ChangedCode(
            touched(self.attack), touched(self.defense), bool(other & set(self.evaluation))
        )

    @classmethod
    def read(cls, path: Path) -> SourceRecord:
        """The record in a JSON file; one without files where there is no file."""
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()


def source_record_file() -> Path:
    """The file beside the published database that holds its `SourceRecord`."""
    return published_database().with_name("sources.json")


def file_digest(path: Path) -> str:
    """SHA-256 of a text file with line ends as `\\n`; empty where there is no file."""
    if not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def published_facts(store: Store) -> PublishedFacts:
    """Date, machine classes and root, read from the database itself."""
    done = [row for row in store.cells() if is_done(row)]
    known = store.machines(row.key for row in done).values()
    last = max((row.updated for row in done), default=0.0)
    return PublishedFacts(
        datetime.fromtimestamp(last, UTC).date().isoformat(),
        tuple(sorted({one.sentence for machines in known for one in machines})),
        store.root(),
    )


def changed_code() -> ChangedCode:
    """What has changed in this installation since the published results were made."""
    root = published_database().parents[2]
    return SourceRecord.read(source_record_file()).changed(root)


def mark_changed(
    rows: Iterable[RankingRow], changed: ChangedCode, attacks: Iterable[str], date: str
) -> list[RankingRow]:
    """The rows; those whose defense or whose attacks have changed say so and stay.

    `attacks` are those that the leaderboard requires.
    """
    required = sorted(changed.attacks & set(attacks))

    def marked(row: RankingRow) -> RankingRow:
        names = [row.defense] * (row.defense in changed.defenses) + required
        if not names:
            return row
        known = row.versions or RowVersions(date, "", {}, older=True, sentences=())
        sentence = f"Evaluated until {date} with an earlier version of {listed(names)}."
        return replace(
            row, versions=replace(known, older=True, sentences=(*known.sentences, sentence))
        )

    return [marked(row) for row in rows]


def listed(names: Sequence[str]) -> str:
    """Some names as text, the first of them where there are many.

    >>> listed(["fgsm", "pgd"])
    'fgsm, pgd'
    """
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def as_record(value: SourceRecord) -> dict[str, Any]:
    """The record as JSON values, in one order."""
    return {
        "files": dict(sorted(value.files.items())),
        "attack": {name: sorted(paths) for name, paths in sorted(value.attack.items())},
        "defense": {name: sorted(paths) for name, paths in sorted(value.defense.items())},
        "evaluation": sorted(value.evaluation),
    }
