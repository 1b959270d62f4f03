"""The pages of a published database: its notice, and the marks on rows of changed code."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.results import published as results
from bench.results.leaderboards import find_leaderboard, leaderboards
from bench.results.published import ChangedCode, published_facts
from bench.results.ranking import load_ranking
from bench.store import Store, published
from leaderboard import reading
from leaderboard.snapshot import write_snapshot
from tests.leaderboard.conftest import Visit
from tests.leaderboard.test_pages import PAGES, html


@pytest.fixture
def shown_as_published(example_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example database in place of the published one, its code unchanged."""
    path = Path(example_url.removeprefix("sqlite:///"))
    monkeypatch.setattr(published, "published_database", lambda: path)
    monkeypatch.setattr(reading, "read_changed_code", ChangedCode)
    return example_url


@pytest.mark.parametrize("page", PAGES)
def test_every_page_states_date_machine_and_root(
    page: str, shown_as_published: str, visit: Visit
) -> None:
    with Store.open(shown_as_published, read_only=True) as store:
        facts = published_facts(store)
    said = html(visit(shown_as_published, page))
    assert "Published results" in said
    assert facts.root in said and facts.date in said
    assert all(machine in said for machine in facts.machines)
    assert "earlier version" not in said


def test_another_database_is_not_called_published(example_url: str, visit: Visit) -> None:
    assert "Published results" not in html(visit(example_url))


@pytest.mark.parametrize("page", ["ranking", "defense"])
def test_rows_of_changed_code_are_marked_and_not_hidden(
    page: str, shown_as_published: str, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(shown_as_published, read_only=True) as store:
        leaderboard = find_leaderboard(store, None)
        rows = load_ranking(store, leaderboard)
    name, sentence = rows[0].defense, "with an earlier version of"
    before = html(visit(shown_as_published, page, name=name))
    assert sentence not in before
    changed = ChangedCode(defenses=frozenset({name}), evaluation=True)
    monkeypatch.setattr(reading, "read_changed_code", lambda: changed)
    after = html(visit(shown_as_published, page, name=name))
    assert sentence in after and "an earlier version of the engine" in after
    assert after.count("<tr") == before.count("<tr")


def test_plain_files_carry_the_notice_and_the_marks(
    shown_as_published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(shown_as_published, read_only=True) as store:
        root, boards = store.root(), leaderboards(store)
    attack = boards[0].required[0]
    monkeypatch.setattr(results, "changed_code", lambda: ChangedCode(frozenset({attack})))
    written = write_snapshot(shown_as_published, tmp_path)
    pages = [path.read_text() for path in written if path.suffix == ".html"]
    assert all("Published results" in page and root in page for page in pages)
    assert any(f"with an earlier version of {attack}." in page for page in pages)
