"""The check of a row against the canaries of the code that evaluated its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.results.masking_checks import NOT_TESTED, PASSED, WARNING, MaskingCheck
from bench.store import EvidenceRow

CANARY_OWNER = "canaries"
"""Reserved name of a defense: evidence rows of the canaries themselves."""
CANARY_CHECK = "canaries"
"""Name of the check, and of the evidence row of each cell, whose digest is the cell's key."""


def canary_check(cells: Iterable[str], evidence: Mapping[str, EvidenceRow]) -> MaskingCheck:
    """Warns where a cell was evaluated by code whose canaries came out wrong.

    Args:
        cells: keys of the finished cells of a row.
        evidence: by cell key, what was recorded when the cell was evaluated.
    """
    keys = list(cells)
    found = [evidence[key] for key in keys if key in evidence]
    wrong = [row.sentence for row in found if row.finding == WARNING]
    if wrong:
        text = " ".join(dict.fromkeys(wrong))
        return MaskingCheck(CANARY_CHECK, WARNING, f"{len(wrong)} of {len(keys)} cells: {text}")
    if not keys or len(found) < len(keys):
        text = f"{len(keys) - len(found)} of {len(keys)} cells have no record of canaries."
        return MaskingCheck(CANARY_CHECK, NOT_TESTED, text)
    return MaskingCheck(CANARY_CHECK, PASSED, " ".join(dict.fromkeys(r.sentence for r in found)))
