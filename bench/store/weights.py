"""Trained weights by the digest of their recipe: the first ones that are committed stay."""

from __future__ import annotations

import hashlib

from sqlalchemy import select
from sqlalchemy.engine import Connection

from bench.core.errors import BenchError
from bench.core.machines import Machine
from bench.store import leases
from bench.store.database import insert_new
from bench.store.records import Lease, WeightsRow
from bench.store.seals import seal_rows
from bench.store.tables import WEIGHTS

MOST_BYTES = 1 << 29
"""Of one weights file; the servers' and SQLite's own limits are near a gigabyte."""


def insert_weights(
    connection: Connection, recipe: str, content: bytes, record: str, machine: Machine | None
) -> None:
    """Record the weights of a recipe; nothing happens where the database has some already.

    `content` is a safetensors file, `record` the JSON object that its training wrote. Raises
    BenchError where the content is larger than MOST_BYTES.
    """
    if len(content) > MOST_BYTES:
        raise BenchError(
            f"the weights of recipe {recipe[:12]} have {len(content)} bytes, a database holds at"
            f" most {MOST_BYTES} of one recipe: keep them as a file beside the plugin."
        )
    values: dict[str, object] = {
        "recipe": recipe,
        "digest": hashlib.sha256(content).hexdigest(),
        "machine": "" if machine is None else machine.to_json(),
        "record": record,
        "content": content,
    }
    if insert_new(connection, WEIGHTS, [values]):
        seal_rows(connection, WEIGHTS, [values])


def commit_training(
    connection: Connection,
    lease: Lease,
    recipe: str,
    content: bytes,
    record: str,
    machine: Machine | None,
) -> None:
    """Record the weights that were trained under a lease and end the lease, both or neither.

    Raises LeaseLostError where the lease is lost.
    """
    leases.release(connection, lease)
    insert_weights(connection, recipe, content, record, machine)


def weights_digest(connection: Connection, recipe: str) -> str | None:
    """SHA-256 of the weights of a recipe; None where the database has none."""
    query = select(WEIGHTS.c.digest).where(WEIGHTS.c.recipe == recipe)
    return connection.execute(query).scalar()


def read_weights(connection: Connection, recipe: str) -> WeightsRow | None:
    """The weights of a recipe; None where the database has none.

    Raises BenchError where their bytes do not have the recorded SHA-256.
    """
    row = connection.execute(select(WEIGHTS).where(WEIGHTS.c.recipe == recipe)).first()
    if row is None:
        return None
    found = hashlib.sha256(row.content).hexdigest()
    if found != row.digest:
        raise BenchError(
            f"the weights of recipe {row.recipe[:12]} in the database are damaged (SHA-256"
            f" {found[:12]}, recorded was {row.digest[:12]}): continue from a backup."
        )
    return WeightsRow(row.recipe, row.digest, row.machine, row.record, row.content)
