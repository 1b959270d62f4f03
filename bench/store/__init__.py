"""The store: planned cells, leases, outcomes per example, images and evidence in one database."""

from bench.store.process_id import process_id
from bench.store.records import (
    CellRow,
    CertificateRow,
    EvidenceRow,
    ExamplesRow,
    Lease,
    LeaseLostError,
    PlannedCell,
    SubmissionRow,
    SubmissionStep,
    WeightsRow,
)
from bench.store.store import Store

__all__ = [
    "CellRow",
    "CertificateRow",
    "EvidenceRow",
    "ExamplesRow",
    "Lease",
    "LeaseLostError",
    "PlannedCell",
    "Store",
    "SubmissionRow",
    "SubmissionStep",
    "WeightsRow",
    "process_id",
]
