"""Cards, example sets, evidence, certificates and submissions."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import insert

from bench.core.cards import AttackCard, DefenseCard
from bench.core.errors import BenchError
from bench.store import CertificateRow, EvidenceRow, Store
from bench.store.tables import CARDS


def test_the_newest_card_is_the_current_one(store: Store) -> None:
    parameters = {"eps": [1, 255]}
    old = AttackCard(name="pgd", origin="built-in", digest="1", steps=40, parameters=parameters)
    new = old.model_copy(update={"digest": "2", "cite": "arXiv:1706.06083", "steps": 50})
    other = AttackCard(name="fgsm", origin="submission")
    store.record_cards([old, DefenseCard(name="pgd", origin="built-in"), other])
    assert store.cards(AttackCard) == [other, old]
    store.record_cards([new])
    assert store.cards(AttackCard) == [other, new]


def test_a_card_of_an_older_version_is_read(store: Store) -> None:
    """It may have fields that are unknown now, lack others, and have values of another type."""
    detail = '{"steps": "many", "rows": ["A07"], "norms": ["linf"], "title": "T"}'
    card = {"kind": "attack", "name": "pgd", "origin": "built-in", "digest": "1", "cite": ""}
    with store.writing() as connection:
        connection.execute(insert(CARDS).values(**card, summary="", detail=detail))
    (found,) = store.cards(AttackCard)
    assert found == AttackCard(name="pgd", origin="built-in", digest="1", norms=("linf",))


def test_examples_are_kept_once(store: Store) -> None:
    labels = np.array([-1, 300, 7], np.int16)
    for _ in range(2):
        store.keep_examples("digest", "digits", 3, labels, ("zero", "one"), (1, 8, 8))
    row = store.examples("digest")
    assert row.labels.tolist() == [-1, 300, 7]
    assert row.labels.dtype == np.int16
    assert (row.dataset, row.n, row.classes, row.shape) == ("digits", 3, ("zero", "one"), (1, 8, 8))
    assert row.order == "balanced"
    store.keep_examples("file", "digits", 3, labels, (), (1, 8, 8), "file")
    assert store.examples("file").order == "file"
    with pytest.raises(BenchError, match="no examples other"):
        store.examples("other")
    with pytest.raises(BenchError, match="give one each"):
        store.keep_examples("short", "digits", 4, labels, (), (1, 8, 8))


def test_the_newest_finding_of_a_diagnostic_is_current(store: Store) -> None:
    before = EvidenceRow("zero-gradient", "raised", "all gradients are zero.", "old")
    after = EvidenceRow("zero-gradient", "clear", "none is zero.", "new")
    alike = EvidenceRow("batch", "clear", "one image at a time answers alike.", "s")
    for found in (before, alike, after):
        store.record_evidence("d", "dd", "ex", found)
    store.record_evidence("d", "dd", "other", alike._replace(finding="raised"))
    assert store.evidence("dd", "ex") == [alike, after]


def test_certificates_come_back_flag_by_flag(store: Store) -> None:
    flags = np.random.default_rng(0).random(37) < 0.5
    store.record_certificate("tid", "ex", CertificateRow("d", "dd", "linear", "old", True, ~flags))
    store.record_certificate("tid", "ex", CertificateRow("d", "dd", "linear", "new", True, flags))
    store.record_certificate(
        "tid", "ex", CertificateRow("c", "cc", "smoothing", "ss", False, ~flags)
    )
    first, second = store.certificates("tid", "ex")
    assert first[:5] == ("c", "cc", "smoothing", "ss", False)
    assert second[:5] == ("d", "dd", "linear", "new", True)
    assert second.certified.tolist() == flags.tolist()
    assert store.certificates("tid", "other") == []


def test_a_submission_shows_its_newest_state_and_its_history(store: Store) -> None:
    store.record_submission_state("mine", "received")
    store.record_submission_state("yours", "received")
    store.record_submission_state("mine", "rejected", "no card.toml.")
    newest, other = store.submissions()
    assert newest[:3] == ("mine", "rejected", "no card.toml.")
    assert [step.state for step in newest.history] == ["received", "rejected"]
    assert (other.name, len(other.history)) == ("yours", 1)
    with pytest.raises(BenchError, match="'lost' is no submission state"):
        store.record_submission_state("mine", "lost")
