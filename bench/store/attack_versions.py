"""Versions of attacks: which digests belonged together, and the card that each digest had.

A card is replaced when its plugin changes. The replaced ones are kept beside it, each under its
digest, and the digests of all attacks at one time are kept as a numbered set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.engine import Connection, RowMapping

from bench.core.cards import AttackCard, read_card
from bench.core.hashing import canonical, digest
from bench.store.tables import CARDS, AnyRow

ATTACK = "attack"
VERSION = "attack version"
"""Kind of the row of one digest; its name is the digest."""
VERSION_SET = "attack versions"
"""Kind of the row of a set of digests; its name begins with its number."""
NEWEST_SETS = 100
"""Number of sets that a reader looks back."""


@dataclass(frozen=True)
class AttackVersions:
    """The digests of all attacks at one time."""

    number: int
    """Rises with every change."""
    digests: Mapping[str, str]
    """Attack -> digest."""


def new_version_rows(connection: Connection) -> list[dict[str, object]]:
    """The rows that keep the current attack cards and their set; empty where it is kept already."""
    rows = connection.execute(select(CARDS).where(CARDS.c.kind == ATTACK)).mappings().all()
    current = {row["name"]: row["digest"] for row in rows if row["digest"]}
    newest = next(iter(select_attack_versions(connection, 1)), AttackVersions(0, {}))
    if current == newest.digests:
        return []
    number, own = newest.number + 1, digest(current)
    content = canonical({"number": number, "digests": current})
    shared = {"origin": "", "cite": "", "summary": ""}
    name = f"{number:08d} {own[:16]}"
    kept: dict[str, object] = {
        "kind": VERSION_SET,
        "name": name,
        "digest": own,
        "detail": content,
        **shared,
    }
    known = select(CARDS.c.name).where(CARDS.c.kind == VERSION)
    there = set(connection.execute(known).scalars())
    return [kept, *(_version_row(row) for row in rows if row["digest"] not in {"", *there})]


def _version_row(row: RowMapping) -> dict[str, object]:
    detail = {**json.loads(row["detail"]), "attack": row["name"]}
    return {**row, "kind": VERSION, "name": row["digest"], "detail": canonical(detail)}


def select_attack_versions(connection: Connection, most: int = NEWEST_SETS) -> list[AttackVersions]:
    """The sets of attack versions that the database has had, the newest first."""
    query = select(CARDS.c.detail).where(CARDS.c.kind == VERSION_SET)
    newest = query.order_by(CARDS.c.name.desc()).limit(most)
    return [AttackVersions(**json.loads(text)) for text in connection.execute(newest).scalars()]


def select_older_attacks(connection: Connection) -> dict[str, AttackCard]:
    """The card that an attack had, by each digest that it has had."""
    rows = connection.execute(select(CARDS).where(CARDS.c.kind == VERSION))
    return {row.digest: _card(row) for row in rows}


def _card(row: AnyRow) -> AttackCard:
    detail = json.loads(row.detail)
    shared = {name: getattr(row, name) for name in ("origin", "digest", "cite", "summary")}
    named = {"kind": ATTACK, "name": detail["attack"], **shared, "detail": detail}
    return read_card(AttackCard, named)
