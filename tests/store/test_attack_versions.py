"""Versions of attacks: which digests belonged together, and the cards that were replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import delete

from bench.core.cards import AttackCard, DefenseCard
from bench.store import Store
from bench.store.attack_versions import VERSION, VERSION_SET, select_attack_versions
from bench.store.tables import CARDS


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path / 'bench.db'}")


def record(store: Store, **digests: str) -> None:
    store.record_cards(
        AttackCard(name=name, origin="built-in", digest=value, steps=len(value))
        for name, value in digests.items()
    )


def sets(store: Store) -> list[dict[str, str]]:
    return [dict(one.digests) for one in store.attack_versions()]


def test_each_change_of_an_attack_is_a_new_set_and_the_newest_comes_first(store: Store) -> None:
    record(store, a="1", b="1")
    record(store, a="1", b="1")
    record(store, a="2", b="22")
    store.record_cards([DefenseCard(name="d", origin="built-in", digest="x")])
    assert sets(store) == [{"a": "2", "b": "22"}, {"a": "1", "b": "1"}]
    record(store, a="1", b="1")
    assert [one.number for one in store.attack_versions()] == [3, 2, 1]
    assert sets(store)[0] == {"a": "1", "b": "1"}


def test_a_replaced_card_is_kept_under_its_digest_and_the_current_one_alone_is_listed(
    store: Store,
) -> None:
    record(store, a="1")
    record(store, a="four")
    found = store.older_attacks()
    assert {digest: (card.name, card.steps) for digest, card in found.items()} == {
        "1": ("a", 1), "four": ("a", 4),
    }  # fmt: skip
    assert [card.digest for card in store.cards(AttackCard)] == ["four"]
    assert store.check() == []


def test_the_cards_of_a_database_without_versions_become_its_first_set(store: Store) -> None:
    record(store, a="1", b="1")
    with store.writing() as connection:
        connection.execute(delete(CARDS).where(CARDS.c.kind.in_((VERSION, VERSION_SET))))
    record(store, a="2", b="1")
    assert sets(store) == [{"a": "2", "b": "1"}, {"a": "1", "b": "1"}]


def test_an_attack_without_a_digest_belongs_to_no_set(store: Store) -> None:
    """The code of a submission that waits was not imported."""
    record(store, a="1", b="1")
    record(store, b="")
    assert sets(store)[0] == {"a": "1"}


def test_a_reader_looks_back_a_limited_number_of_sets(store: Store) -> None:
    for version in range(4):
        record(store, a=str(version))
    with store.reading() as connection:
        assert [one.number for one in select_attack_versions(connection, 2)] == [4, 3]
