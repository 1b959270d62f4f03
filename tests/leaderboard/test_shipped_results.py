"""The published results that come with the project: intact, small, and shown at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from bench.results import published as results
from bench.results.leaderboards import leaderboards
from bench.results.ranking import load_ranking
from bench.store import Store, published
from bench.store.damage import check_database
from tests.leaderboard.test_browser import FLAGS, PATIENCE, chromium
from tests.tools.published import CELLS, MOST_DATABASE

SHIPPED = published.published_database()
SECONDS = 10
"""Within which the pages show results, once the server says that it runs."""
LEAST_RANKED = 13
START = (
    "import signal, sys; from bench.cli.serve import serve; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "sys.exit(serve(port=0, open_browser=False))"
)


def test_the_shipped_database_is_intact_small_and_ranks_every_row() -> None:
    assert SHIPPED.stat().st_size <= MOST_DATABASE
    assert check_database(f"sqlite:///{SHIPPED}") == []
    with Store.open(f"sqlite:///{SHIPPED}", read_only=True) as store:
        rows = {board.name: load_ranking(store, board) for board in leaderboards(store)}
    assert set(rows) == set(CELLS)
    ranked = [row for some in rows.values() for row in some if row.rank is not None]
    assert len(ranked) >= LEAST_RANKED and len(ranked) == sum(map(len, rows.values()))
    for threat, some in rows.items():
        assert {row.defense for row in some} <= set(CELLS[threat])
        assert all(row.robust_ranked.n >= 500 for row in some)
        best = max(row.robust_ranked.k for row in some)
        plain = next(row for row in some if row.defense.endswith("-standard"))
        assert plain.robust_ranked.k < best, "training on clean images is never the best"


def test_the_shipped_record_covers_every_attack_and_defense() -> None:
    record = results.SourceRecord.read(results.source_record_file())
    with Store.open(f"sqlite:///{SHIPPED}", read_only=True) as store:
        cells = [row.cell for row in store.cells() if row.state == "done"]
    assert {cell.defense for cell in cells} == set(record.defense)
    assert {cell.attack for cell in cells} - {"clean"} == set(record.attack)
    assert all(len(digest) == 64 for digest in record.files.values())


@pytest.mark.slow
def test_a_fresh_folder_shows_it_within_ten_seconds(tmp_path: Path) -> None:
    browser_path, log = chromium(), tmp_path / "log"
    here = tmp_path / "here"
    here.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "BENCH_DB"}
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", START], env=environment, cwd=here,
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while "Leaderboard: " not in log.read_text():
            assert time.monotonic() < deadline and server.poll() is None, log.read_text()
            time.sleep(0.1)
        url = log.read_text().partition("Leaderboard: ")[2].split()[0]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=browser_path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1400})
            page.set_default_timeout(PATIENCE)
            began = time.monotonic()
            page.goto(url)
            page.wait_for_selector("text=Published results")
            page.wait_for_selector("table >> text=convex-mnist")
            assert time.monotonic() - began < SECONDS
            if folder := os.environ.get("BENCH_SCREENSHOTS"):
                page.wait_for_timeout(2000)
                page.screenshot(path=Path(folder) / "published.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    assert list(here.iterdir()) == [], "the pages write nothing"
