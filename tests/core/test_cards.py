"""Cards as records, and records that an older version wrote."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bench.core.cards import (
    CARD_MODELS,
    AttackCard,
    Claim,
    DefenseCard,
    SubmissionInfo,
    ThreatCard,
    card_record,
    read_card,
)
from bench.core.hashing import canonical


@pytest.mark.parametrize("kind", CARD_MODELS)
def test_a_card_is_read_from_its_own_record(kind: str) -> None:
    card = CARD_MODELS[kind](
        kind=kind, name="n", origin="built-in", digest="d", cite="c", summary="s"
    )
    record = json.loads(canonical(card_record(card)))
    assert record["kind"] == kind
    assert read_card(CARD_MODELS[kind], record) == card


def test_the_fields_of_a_kind_are_kept_in_json() -> None:
    info = SubmissionInfo(title="T", authors=("A", "B"), licence="MIT")
    claims = (Claim("linf", 0.5, "arXiv:0000.00000"), Claim("l2", 1))
    card = DefenseCard(
        name="n", origin="submission", claims=claims, rejects=0.1, digests={"digits": "x"},
        submission=info,
    )  # fmt: skip
    assert read_card(DefenseCard, json.loads(canonical(card_record(card)))) == card


def test_a_record_of_an_older_version_gets_defaults_for_what_is_missing_or_unreadable() -> None:
    shared = {"kind": "attack", "name": "pgd", "origin": "built-in", "digest": "1"}
    detail = {"steps": "many", "needs": 3, "norms": ["linf"], "rows": ["A07"], "name": "another"}
    old = {**shared, "cite": "", "summary": "", "detail": detail}
    expected = AttackCard(name="pgd", origin="built-in", digest="1", norms=("linf",))
    assert read_card(AttackCard, old) == expected
    assert not read_card(ThreatCard, {**old, "kind": "threat", "detail": {}}).id


def test_a_card_cannot_be_changed() -> None:
    card = AttackCard(name="pgd", origin="built-in")
    with pytest.raises(ValidationError, match="frozen"):
        card.name = "other"
