"""Pages, snapshot, API and `bench report` show the same figures."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app as command_line
from bench.results.leaderboards import leaderboards
from bench.store import Store
from leaderboard import words
from leaderboard.snapshot import snapshot_file, write_snapshot
from tests.leaderboard.conftest import Visit
from tests.leaderboard.example_database import N
from tests.leaderboard.test_json_api import get
from tests.leaderboard.test_pages import html as page_html

Figures = dict[str, list[str]]
"""Name of the row -> its figures as they are printed."""


def shown(page: str, heading: str, n: str = str(N)) -> Figures:
    """The figures k/n of each row of the first table that has a column of this heading."""
    table = next(
        t for t in page.split("<table")[1:] if f">{heading}<" in t.partition("</thead>")[0]
    )
    rows = table.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr>")[1:]
    found = {}
    for row in rows:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        plain = [html.unescape(re.sub(r"<[^>]+>", " ", cell)) for cell in cells]
        name = re.search(r'href="[^"]*"[^>]*>(.*?)</a>', row)
        assert name is not None
        figures = [m for cell in plain for m in re.findall(rf"\b\d+/{n}\b", cell)]
        found[html.unescape(name[1])] = figures
    return found


def counted(row: Mapping[str, Any], *names: str) -> list[str]:
    counts = [row[name] for name in names]
    return [f"{count['k']}/{count['n']}" for count in counts if count and count["n"]]


def expected(report: Mapping[str, Any]) -> Figures:
    """The figures of a ranking by the JSON report: robust, clean and certified."""
    found = {}
    some = any(row["certified"] and row["certified"]["k"] for row in report["ranking"])
    for row in report["ranking"]:
        certified = counted(row, "certified") if some and row["certified"] else []
        name = words.plain_text(row["defense"])
        found[name] = counted(row, "robust", "clean") + certified
    return found


def test_pages_snapshot_api_and_reports_agree_on_every_figure(
    example_url: str, tmp_path: Path, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DB", example_url)
    write_snapshot(example_url, tmp_path)
    with Store.open(example_url, read_only=True) as store:
        known = words.leaderboards_by_label(leaderboards(store))
    assert len(known) == 4
    for label, board in known.items():
        words_of = ["report", "--json", "--threat", board.name, "--db", example_url]
        asked = CliRunner().invoke(command_line, [*words_of, "--mode", board.mode])
        report = json.loads(asked.stdout)
        answer = get(f"/ranking?threat={label.replace(' ', '%20')}").document
        assert answer == report
        figures = expected(report)
        page = page_html(visit(example_url, threat=label))
        file = (tmp_path / snapshot_file("leaderboard", label)).read_text()
        for text in (page, file):
            assert shown(text, "Clean accuracy ↑") == figures, label
            for row in report["ranking"]:
                if row["robust_ranked"]["n"]:
                    share = 100 * row["robust_ranked"]["k"] / row["robust_ranked"]["n"]
                    assert f"{share:.1f} %" in text
        matrix = {
            (cell["attack"], cell["defense"]): counted(cell, "robust") for cell in report["matrix"]
        }
        for (attack, defense), counts in matrix.items():
            if counts:
                assert f"{words.plain_text(defense)}, {attack}: " in html.unescape(file)
        for attack in {attack for (attack, _), counts in matrix.items() if counts}:
            page = page_html(visit(example_url, "attack", attack=attack, threat=label))
            found = shown(page, "Only by it", r"\d+")
            file = (tmp_path / snapshot_file("attack", attack)).read_text()
            for (one, defense), counts in matrix.items():
                if one == attack and counts:
                    name = words.plain_text(defense)
                    assert counts[0] in found[name] and counts[0] in file
