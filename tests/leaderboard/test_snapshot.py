"""The snapshot has the figures of the app, without scripts and without other hosts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.cli.serve import serve
from bench.core.errors import BenchError
from bench.results.json_report import json_report
from bench.results.leaderboards import leaderboards
from bench.results.ranking import load_ranking
from bench.store import Store
from leaderboard import grid, markup, snapshot
from tests.leaderboard.example_database import DEFENSES, HOSTILE, THREATS


@pytest.fixture(scope="module")
def files(example_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    written = snapshot.write_snapshot(example_url, tmp_path_factory.mktemp("snapshot"))
    return {path.name: path.read_text(encoding="utf-8") for path in written}


def test_every_leaderboard_and_every_defense_has_a_page(files: dict[str, str]) -> None:
    leaderboard_files, defenses = (
        [n for n in files if n.startswith(k)] for k in ("leaderboard-", "defense-")
    )
    assert len(leaderboard_files) == 2 * (len(THREATS) + 1), (
        "a page and a report each, one in rank mode"
    )
    assert len(defenses) == len(DEFENSES)


def test_every_link_leads_to_an_existing_file(files: dict[str, str]) -> None:
    links = {link for page in files.values() for link in re.findall(r'href="([^"]*)"', page)}
    assert len(links) > len(DEFENSES) and links <= set(files)


def test_snapshots_have_no_scripts_and_no_links_to_other_hosts(files: dict[str, str]) -> None:
    for name, page in files.items():
        if name.endswith(".html"):
            assert "<script" not in page and not re.search(r'(src|href)="(?!data:)[a-z]+:', page)
            assert snapshot.SNAPSHOT_POLICY in page


def test_the_figures_are_those_of_the_app(files: dict[str, str], example_url: str) -> None:
    with Store.open(example_url, read_only=True) as store:
        for leaderboard in leaderboards(store):
            page = files[snapshot.snapshot_file("leaderboard", leaderboard.name)]
            for row in load_ranking(store, leaderboard):
                assert markup.bar(row.robust) in page
            told = json.loads(
                files[
                    snapshot.snapshot_file("leaderboard", leaderboard.name).replace(
                        ".html", ".json"
                    )
                ]
            )
            assert told == json.loads(json.dumps(json_report(store, leaderboard.name)))


def test_the_matrix_names_the_number_of_hidden_attacks(crowded_url: str, tmp_path: Path) -> None:
    snapshot.write_snapshot(crowded_url, tmp_path)
    page = (tmp_path / snapshot.snapshot_file("leaderboard", "digits-linf")).read_text(
        encoding="utf-8"
    )
    matrix = page.partition('class="g-table g-grid"')[2].partition("</table>")[0]
    assert "a-further-attack-14" in matrix and "a-further-attack-15" not in matrix
    assert "Not shown: 10 attacks without a result." in page
    assert "a-further-attack-15 → trades" in page, "with its reason"


def test_a_hostile_name_is_escaped(files: dict[str, str]) -> None:
    page = files[snapshot.snapshot_file("defense", HOSTILE)]
    assert "<h1>![x](http://evil.example/x.png)&lt;img" in page
    assert set(snapshot.snapshot_file("defense", HOSTILE)) <= set(
        "abcdefghijklmnopqrstuvwxyz0123456789._-"
    )


def test_similar_names_have_different_files() -> None:
    assert (
        len({snapshot.snapshot_file("defense", name) for name in ("a b", "a-b", "A-b", "a/b")}) == 4
    )


def test_an_empty_database_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'e.db'}"
    Store.open(url).close()
    with pytest.raises(BenchError, match="bench run"):
        snapshot.write_snapshot(url, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_writes_files_without_a_server(example_url: str, tmp_path: Path) -> None:
    assert serve(db=example_url, export=tmp_path / "out") == 0
    assert (tmp_path / "out" / "index.html").exists()


def test_the_exit_code_reports_an_unusable_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_DB", f"sqlite:///{tmp_path / 'none.db'}")
    monkeypatch.setattr("sys.argv", ["snapshot", str(tmp_path / "out")])
    assert snapshot.main() == 5
    assert "no database" in capsys.readouterr().err


def test_the_colour_scale_is_dark_for_low_and_light_for_high_values() -> None:
    assert grid.viridis(0.0) == (68, 1, 84) and grid.viridis(1.0) == (253, 231, 37)
    light = [sum(grid.viridis(k / 50)) for k in range(51)]
    assert grid.viridis(-1.0) == grid.viridis(0.0) and grid.viridis(7.0) == grid.viridis(1.0)
    assert light[0] < light[25] < light[50]
