"""The page of the score over several sets, in the app and in the snapshot."""

from __future__ import annotations

from pathlib import Path

from bench.results.set_unions import load_set_union
from bench.store import Store
from leaderboard.markup import text
from leaderboard.snapshot import write_snapshot
from leaderboard.union_tables import UNION_CAPTION
from tests.leaderboard.conftest import Visit
from tests.leaderboard.test_pages import html


def test_the_page_shows_every_row_of_the_score(example_url: str, visit: Visit) -> None:
    with Store.open(example_url, read_only=True) as store:
        found = load_set_union(store, "digits")
    said = html(visit(example_url, "union", threat="digits-linf"))
    assert UNION_CAPTION in said
    for row in found.rows:
        low, high = row.interval
        assert text(row.defense) in said and f"{row.union.k}/{row.union.n}" in said
        assert f"{100 * row.average:.1f} %" in said and f"{100 * high:.1f} %" in said
        assert 0 <= low < row.average < high
    assert found.rows and all("without" in row.note for row in found.rows)


def test_the_snapshot_has_the_same_page(example_url: str, tmp_path: Path) -> None:
    write_snapshot(example_url, tmp_path)
    with Store.open(example_url, read_only=True) as store:
        found = load_set_union(store, "digits")
    page = (tmp_path / "sets-digits.html").read_text()
    assert all(f"{row.union.k}/{row.union.n}" in page for row in found.rows)
    assert UNION_CAPTION in page
    assert 'href="sets-digits.html"' in (tmp_path / "index.html").read_text()
