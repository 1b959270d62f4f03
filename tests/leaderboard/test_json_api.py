"""The read-only API: its documents are those of the pages and of `bench report --json`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette

from bench.results.json_report import json_report
from bench.results.leaderboards import find_leaderboard, leaderboards
from bench.results.ranking import load_ranking
from bench.store import Store
from leaderboard import badges, words
from leaderboard.json_api import DOCUMENTS, ROUTES, SCHEMA_FILE, plain
from tests.leaderboard.example_database import ATTACKS, HOSTILE

SVG = "{http://www.w3.org/2000/svg}"
ATOM = "{http://www.w3.org/2005/Atom}"


class Answer(NamedTuple):
    """Status, headers in small letters, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def get(path: str, **headers: str) -> Answer:
    """What the API answers, asked without a server."""
    place, _, query = path.partition("?")
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http", "method": "GET", "path": f"/api/v1{place}", "query_string": query.encode(),
        "headers": [(b"host", b"here.example"),
                    *((n.replace("_", "-").encode(), v.encode()) for n, v in headers.items())],
        "scheme": "https", "server": ("here.example", 443), "root_path": "", "http_version": "1.1",
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    asyncio.run(Starlette(routes=ROUTES)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:]))


@pytest.fixture
def database(example_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BENCH_DB", example_url)
    return example_url


def some_key(url: str) -> str:
    with Store.open(url, read_only=True) as store:
        return next(row.key for row in store.cells() if row.cell.attack == "pgd")


def addresses(url: str) -> dict[str, str]:
    """Every document with parameters that name something."""
    asked = {
        "/defense": "?name=trades", "/attack": "?attack=pgd&threat=digits-l2",
        "/compare": "?with=trades&with=undefended", "/cell": f"?key={some_key(url)[:12]}",
        "/ranking": "?threat=digits-linf%20in%20rank%20mode",
    }  # fmt: skip
    return {path: path + asked.get(path, "") for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_document_follows_the_published_schema(path: str, database: str) -> None:
    answer = get(addresses(database)[path])
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    schema = json.loads(SCHEMA_FILE.read_text())
    place = schema["x-addresses"][f"/api/v1{path}"]
    Draft202012Validator.check_schema(schema)
    errors = list(Draft202012Validator({**schema, "anyOf": [{"$ref": place}]}).iter_errors(
        answer.document
    ))  # fmt: skip
    assert errors == []
    assert get("/schema.json").document == schema


def test_the_schema_refuses_a_document_with_another_field(database: str) -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    document = get("/status").document
    validator = Draft202012Validator({**schema, "anyOf": [{"$ref": "#/$defs/Status"}]})
    assert validator.is_valid(document)
    assert not validator.is_valid({**document, "more": 1})
    assert not validator.is_valid({k: v for k, v in document.items() if k != "root"})


def test_the_ranking_is_the_report_of_the_command_line(database: str) -> None:
    with Store.open(database, read_only=True) as store:
        for label, board in words.leaderboards_by_label(leaderboards(store)).items():
            said = json_report(store, board.name, board.mode, order=board.example_order)
            found = get(f"/ranking?threat={quote(label)}").document
            assert found == json.loads(json.dumps(plain(said)))


def test_a_defense_has_its_row_on_every_leaderboard(database: str) -> None:
    found = get(f"/defense?name={quote(HOSTILE)}").document
    assert found["card"]["name"] == HOSTILE
    report = get("/ranking?threat=digits-l2").document
    row = next(row for row in report["ranking"] if row["defense"] == HOSTILE)
    assert found["leaderboards"]["digits-l2"]["row"] == row
    assert len(found["leaderboards"]["digits-l2"]["cells"]) == len(ATTACKS)
    assert len(get("/leaderboards").document["leaderboards"]) == 4


def test_a_comparison_counts_the_examples_that_the_ranking_counts(database: str) -> None:
    (pair,) = get("/compare?with=trades&with=undefended").document["pairs"]
    rows = {row["defense"]: row for row in get("/ranking?threat=digits-linf").document["ranking"]}
    assert pair["both"] + len(pair["only_a"]) == rows["trades"]["robust"]["k"]
    assert pair["both"] + len(pair["only_b"]) == rows["undefended"]["robust"]["k"]
    assert pair["difference"]["low"] > 0


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/ranking?threat=retired", 404, "no leaderboard 'retired'"),
        ("/defense", 400, "'name' is missing"),
        ("/defense?name=retired", 404, "no defense 'retired'"),
        ("/attack?attack=retired", 404, "attack 'retired'"),
        ("/compare?with=trades", 400, "1 name came"),
        ("/compare?with=trades&with=retired", 400, "no defense 'retired'"),
        ("/cell?key=zz", 400, "no beginning of a cell's key"),
        ("/cell?key=f", 400, "cells have a key that begins with 'f'"),
        ("/badge.svg?name=retired", 404, "no row of a defense 'retired'"),
    ],
)
def test_a_request_that_names_nothing_gets_one_sentence(
    path: str, status: int, says: str, database: str
) -> None:
    answer = get(path)
    assert answer.status == status
    assert says in answer.document["error"] and "Traceback" not in answer.document["error"]


@pytest.mark.parametrize("path", ["", "/ranking", "/status", "/badge.svg?name=trades", "/feed.xml"])
def test_a_database_that_cannot_be_read_is_an_error_of_the_server(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "garbage.db"
    file.write_text("garbage " * 1000)
    monkeypatch.setenv("BENCH_DB", f"sqlite:///{file}")
    answer = get(path)
    assert answer.status == 503 and "not a database" in answer.document["error"]


@pytest.mark.parametrize("path", ["/ranking", "/badge.svg?name=trades", "/feed.xml"])
def test_an_answer_is_sent_again_only_after_a_change(
    path: str, example_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "bench.db"
    copy.write_bytes(Path(example_url.removeprefix("sqlite:///")).read_bytes())
    monkeypatch.setenv("BENCH_DB", f"sqlite:///{copy}")
    first = get(path)
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get(path, if_none_match=known)
        assert (again.status, again.body) == (304, b"") and again.headers["etag"] == tag
    assert get(path, if_none_match='"other"').status == 200
    with Store.open(f"sqlite:///{copy}") as store:
        lease = store.lease(
            next(row.key for row in store.cells("digits-linf") if row.state == "missing"),
            "worker@here:1",
        )
        assert lease is not None
    fresh = get(path, if_none_match=tag)
    assert fresh.status == (200 if path == "/ranking" else 304)


def test_no_other_site_may_read_the_answers(database: str) -> None:
    answer = get("/ranking", origin="https://evil.example")
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_badge_shows_figure_interval_verdict_and_date(database: str) -> None:
    with Store.open(database, read_only=True) as store:
        board = find_leaderboard(store, "digits-linf")
        rows = {row.defense: row for row in load_ranking(store, board)}
        cells = store.cells()
    for name, row in rows.items():
        answer = get(f"/badge.svg?name={quote(name)}&threat=digits-linf")
        assert answer.headers["content-type"] == "image/svg+xml"
        title = ElementTree.fromstring(answer.body).find(f"{SVG}title")
        assert title is not None and title.text is not None
        if row.rank is None:
            assert "not ranked" in title.text
        else:
            assert words.format_count(row.robust_ranked) in title.text
            assert (row.verdict in title.text) == (row.verdict != "sound")
        newest = badges.newest_of_defense(cells, board, name)
        assert words.day(newest) in title.text and newest is not None
        assert b"<img" not in answer.body and b"http://evil" not in answer.body.replace(
            b"&lt;img src=http://evil", b""
        ).replace(b"![x](http://evil", b"")
    sound = next(row for row in rows.values() if row.rank)
    assert "suspect" in badges.badge(replace(sound, verdict="suspect"), "digits-linf", 0.0)


def test_the_feed_lists_the_newest_of_defenses_first(database: str) -> None:
    root = ElementTree.fromstring(get("/feed.xml").body)
    entries = root.findall(f"{ATOM}entry")
    times = [str(entry.findtext(f"{ATOM}updated")) for entry in entries]
    assert times == sorted(times, reverse=True) and times[0] == root.findtext(f"{ATOM}updated")
    links = [entry.find(f"{ATOM}link") for entry in entries]
    assert all(link is not None for link in links)
    assert {str(link.get("href")).partition("?")[0] for link in links if link is not None} == {
        "https://here.example/defense"
    }
    titles = [str(entry.findtext(f"{ATOM}title")) for entry in entries]
    assert len(titles) == len(set(titles))
    with Store.open(database, read_only=True) as store:
        assert set(titles) == {
            f"{words.plain_text(row.defense)} under {label}"
            for label, board in words.leaderboards_by_label(leaderboards(store)).items()
            for row in load_ranking(store, board)
            if row.robust.n
        }
