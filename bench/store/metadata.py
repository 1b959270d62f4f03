"""Records beside the cells: cards, example sets, evidence, certificates, submissions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from bench.core.cards import Card, CardT, kind_fields, read_card
from bench.core.cells import BALANCED_ORDER
from bench.core.errors import BenchError
from bench.core.hashing import canonical
from bench.store.attack_versions import ATTACK, new_version_rows
from bench.store.codec import pack_bits, unpack_bits
from bench.store.database import insert_new, upsert
from bench.store.leases import clock
from bench.store.records import (
    CertificateRow,
    EvidenceRow,
    ExamplesRow,
    SubmissionRow,
    SubmissionStep,
)
from bench.store.seals import seal_rows
from bench.store.tables import CARDS, CERTIFICATES, EVIDENCE, EXAMPLES, SUBMISSIONS, AnyRow

SUBMISSION_STATES = ("received", "rejected", "queued", "running", "finished", "failed")


def record_cards(connection: Connection, cards: Iterable[Card]) -> None:
    """Make these the current cards of their plugins, by kind and name.

    The versions of attacks that are replaced are kept (`bench.store.attack_versions`).
    """
    rows = [_card_row(card) for card in cards]
    has_attacks = any(row["kind"] == ATTACK for row in rows)
    if has_attacks:  # of a database from before versions were kept
        _write_cards(connection, new_version_rows(connection))
    _write_cards(connection, rows)
    if has_attacks:
        _write_cards(connection, new_version_rows(connection))


def _card_row(card: Card) -> dict[str, object]:
    return {
        "kind": card.kind,
        "name": card.name,
        "origin": card.origin,
        "digest": card.digest,
        "cite": card.cite,
        "summary": card.summary,
        "detail": canonical(kind_fields(card)),
    }


def _write_cards(connection: Connection, rows: Sequence[dict[str, object]]) -> None:
    upsert(connection, CARDS, *rows)
    seal_rows(connection, CARDS, rows)


def select_cards(connection: Connection, model: type[CardT]) -> list[CardT]:
    """The current cards of one kind, given by its model, by name."""
    kind = model.model_fields["kind"].default
    query = select(CARDS).where(CARDS.c.kind == kind).order_by(CARDS.c.name)
    rows = connection.execute(query).mappings()
    return [read_card(model, {**row, "detail": json.loads(row["detail"])}) for row in rows]


def keep_examples(
    connection: Connection,
    digest: str,
    dataset: str,
    n: int,
    labels: npt.NDArray[np.int16],
    classes: Sequence[str],
    shape: Sequence[int],
    order: str = BALANCED_ORDER,
) -> None:
    """Record the labels [n] of a set of examples once; `shape` is [C, H, W].

    `order` says which images of the data set are the first ones.

    Raises BenchError where the number of labels is not n.
    """
    if labels.shape != (n,):
        raise BenchError(f"{n} examples came with labels {list(labels.shape)}: give one each.")
    values = {
        "digest": digest,
        "dataset": dataset,
        "n": n,
        "labels": np.ascontiguousarray(labels, "<i2").tobytes(),
        "classes": canonical(list(classes)),
        "shape": canonical(list(shape)),
        "order": order,
    }
    if insert_new(connection, EXAMPLES, [values]):
        seal_rows(connection, EXAMPLES, [values])


def select_examples(connection: Connection, digest: str) -> ExamplesRow:
    """A set of examples by its digest; raises BenchError where it is unknown."""
    row = connection.execute(select(EXAMPLES).where(EXAMPLES.c.digest == digest)).first()
    if row is None:
        raise BenchError(f"no examples {digest[:12]} in this database: `bench run` records them.")
    labels = np.frombuffer(row.labels, "<i2").astype(np.int16)
    names, shape = tuple(json.loads(row.classes)), tuple(json.loads(row.shape))
    return ExamplesRow(row.digest, row.dataset, row.n, labels, names, shape, row.order)


def record_evidence(
    connection: Connection, defense: str, defense_digest: str, examples: str, evidence: EvidenceRow
) -> None:
    """Record the finding of a diagnostic on a defense; the newest replaces older ones."""
    names = {"defense": defense, "defense_digest": defense_digest, "examples": examples}
    values = names | evidence._asdict()
    upsert(connection, EVIDENCE, values)
    seal_rows(connection, EVIDENCE, [values])


def select_evidence(connection: Connection, defense: str, examples: str) -> list[EvidenceRow]:
    """The findings of the diagnostics on the defense of a digest, by their names."""
    columns = [EVIDENCE.c[name] for name in EvidenceRow._fields]
    about = (EVIDENCE.c.defense_digest == defense) & (EVIDENCE.c.examples == examples)
    query = select(*columns).where(about).order_by(EVIDENCE.c.diagnostic)
    return [EvidenceRow(*row) for row in connection.execute(query)]


def select_evidence_of(connection: Connection, diagnostic: str) -> dict[str, EvidenceRow]:
    """The findings of one diagnostic by the digest that they are about, on any examples."""
    columns = [EVIDENCE.c[name] for name in EvidenceRow._fields]
    query = select(EVIDENCE.c.defense_digest, *columns).where(EVIDENCE.c.diagnostic == diagnostic)
    return {row[0]: EvidenceRow(*row[1:]) for row in connection.execute(query)}


def record_certificate(
    connection: Connection, threat_id: str, examples: str, found: CertificateRow
) -> None:
    """Record a certifier's certificates of a defense; the newest replace older ones."""
    values = found._asdict() | {
        "threat_id": threat_id,
        "examples": examples,
        "n": len(found.certified),
        "certified": pack_bits(found.certified),
    }
    upsert(connection, CERTIFICATES, values)
    seal_rows(connection, CERTIFICATES, [values])


def certificates(connection: Connection, threat_id: str, examples: str) -> list[CertificateRow]:
    """All certificates under a threat model on these examples, by defense and certifier."""
    table = CERTIFICATES
    wanted = (table.c.threat_id == threat_id) & (table.c.examples == examples)
    query = select(table).where(wanted).order_by(table.c.defense, table.c.certifier)
    return [_certificate(row) for row in connection.execute(query)]


def record_submission_state(
    connection: Connection, name: str, state: str, reason: str = ""
) -> None:
    """Append a submission's new state, with the time; raises BenchError for an unknown state."""
    if state not in SUBMISSION_STATES:
        raise BenchError(
            f"{state!r} is no submission state: one of {', '.join(SUBMISSION_STATES)}."
        )
    values = {"name": name, "state": state, "reason": reason, "at": clock(connection)}
    (step,) = connection.execute(insert(SUBMISSIONS).values(values)).inserted_primary_key or (0,)
    seal_rows(connection, SUBMISSIONS, [values | {"step": step}])


def select_submissions(connection: Connection) -> list[SubmissionRow]:
    """Every submission with its state and history, the most recently changed first."""
    steps: dict[str, list[SubmissionStep]] = {}
    for row in connection.execute(select(SUBMISSIONS).order_by(SUBMISSIONS.c.step)):
        # Removed and inserted again, so that the submission that changed last comes last.
        past = steps.pop(row.name, [])
        steps[row.name] = [*past, SubmissionStep(row.state, row.reason, row.at)]
    return [SubmissionRow(name, *past[-1], tuple(past)) for name, past in reversed(steps.items())]


def _certificate(row: AnyRow) -> CertificateRow:
    certified = unpack_bits(row.certified, row.n)
    names = (row.defense, row.defense_digest, row.certifier, row.certifier_digest)
    return CertificateRow(*names, row.exact, certified)
