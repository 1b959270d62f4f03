"""The store: planned cells, leases, per-example outcomes, images and evidence in one database."""

from bench.store.owner import owner_name
from bench.store.rows import (
    CellRow,
    Certificate,
    Evidence,
    ExamplesRow,
    Lease,
    LeaseLostError,
    Planned,
    Submission,
    SubmissionStep,
)
from bench.store.store import Store

__all__ = [
    "CellRow",
    "Certificate",
    "Evidence",
    "ExamplesRow",
    "Lease",
    "LeaseLostError",
    "Planned",
    "Store",
    "Submission",
    "SubmissionStep",
    "owner_name",
]
