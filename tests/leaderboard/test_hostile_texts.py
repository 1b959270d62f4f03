"""Pages of a database whose free texts are hostile: plain text, of which nothing is interpreted."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Dialog, sync_playwright
from streamlit.testing.v1 import AppTest

from bench.core.visible_text import is_hidden
from bench.store.tables import METADATA
from leaderboard import markup, snapshot
from tests.leaderboard.conftest import Visit
from tests.leaderboard.test_browser import FLAGS, Visitor, chromium, start

HIDDEN = "\u202e\u2066\u200f\u200b\u200d\ufeff\u00ad\u034f\u3164\u2028\u2029\ufe0f\x1b[2J\x07\x85"
"""Bidirectional and zero-width characters, fillers, line separators, a terminal's commands."""
PILE = "a" + "\u0301" * 40
HOSTILE_TEXT = (
    f"ab{HIDDEN}cd<script>alert(1)</script><img src=http://evil.example/y.png onerror=alert(1)>"
    "\"' onmouseover=alert(1) x='![z](http://evil.example/z.png)[q](javascript:alert(1))"
    f":red[r] $$\\href{{javascript:alert(1)}}{{t}}$$ {PILE} {'W' * 400}"
)
NAME = f"evil{HIDDEN}<b onclick=alert(1)>![n](http://evil.example/n.png)[p](javascript:alert(1))"
REPLACED = {
    "trades": NAME,
    "deepfool": f"{NAME} attack",
    "careful-entry": f"{NAME} entry",
    "worker-2@elsewhere:1": f"{NAME} owner",
    "digits-l2": f"{NAME} threat model",
    "margin-bound": f"{NAME} certifier",
    "gradient-check": f"{NAME} check",
    '"7"': json.dumps(f"{NAME} class"),
    "A synthetic attack.": HOSTILE_TEXT,
    "A synthetic defense called": HOSTILE_TEXT,
    "Real handwriting": HOSTILE_TEXT,
    "the gradient is zero": HOSTILE_TEXT,
    "is not a name": HOSTILE_TEXT,
    "arXiv:1706.06083": f"javascript:alert(1)//{HOSTILE_TEXT}",
    "arXiv:1901.08573": f"javascript:alert(2)//{HOSTILE_TEXT}",
}
"""Texts of the example database -> what stands in their place."""
PAGES = ("ranking", "matrix", "defense", "union", "submissions", "rules")


@pytest.fixture(scope="module")
def hostile_url(example_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example database with hostile texts in the place of harmless ones, in every column."""
    path = tmp_path_factory.mktemp("hostile_texts") / "bench.db"
    with (
        closing(sqlite3.connect(example_url.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(path)) as copy,
    ):
        source.backup(copy)
        for table in METADATA.sorted_tables:
            for column in table.columns:
                if column.type.python_type is str:
                    _replace(copy, table.name, column.name)
        copy.commit()
    return f"sqlite:///{path}"


def _replace(copy: sqlite3.Connection, table: str, column: str) -> None:
    in_json = column in ("detail", "classes")
    for old, new in REPLACED.items():
        written = json.dumps(new)[1:-1] if in_json and not old.startswith('"') else new
        copy.execute(f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)', (old, written))


class Elements(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def interpreted(page: str, scripts: int = 0) -> Iterator[str]:
    """What of a page would be run, fetched or hidden."""
    found = Elements(page)
    tags = [tag for tag, _ in found.tags]
    if tags.count("script") > scripts or {"iframe", "object", "embed", "base"} & set(tags):
        yield "a script or frame"
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            if name.startswith("on") or (name in ("src", "srcset", "action") and "evil" in value):
                yield f"<{tag} {name}={value[:80]!r}>"
            if name == "src" and not value.startswith("data:image/png;base64,"):
                yield f"<{tag} src={value[:80]!r}>"
            if name == "href" and re.match(r"\s*(javascript|data|vbscript|https?):", value, re.I):
                yield f"<{tag} href={value[:80]!r}>"
            if name not in ("href", "style") and any(map(is_hidden, value)):
                yield f"hidden characters in {name} of <{tag}>"
    for text in found.texts:
        hidden = {c for c in text if is_hidden(c) and c not in "\n\t\r"}
        if hidden:
            yield f"hidden characters {sorted(map(ascii, hidden))} in {text.strip()[:60]!a}"
        if re.search("\u0301{5}", unicodedata.normalize("NFD", text)):
            yield "a pile of combining marks"


def html_of(app: AppTest) -> str:
    return "\n".join(element.proto.body for element in app.get("html"))


@pytest.mark.parametrize("page", PAGES)
def test_no_text_of_a_database_is_interpreted_on_a_page(
    page: str, hostile_url: str, visit: Visit
) -> None:
    query = {"name": NAME} if page == "defense" else {}
    app = visit(hostile_url, page, **query)
    shown = html_of(app)
    assert list(interpreted(shown)) == []
    if page in ("ranking", "defense", "submissions"):
        assert "&lt;b onclick=alert(1)&gt;" in shown, "the hostile name is not on this page"
    if page == "defense":
        assert f"<h1>{markup.text(NAME)}</h1>" in shown
        assert "javascript:alert(1)//ab" in shown, "the paper is shown as text"


@pytest.mark.parametrize("page", PAGES)
def test_no_text_of_a_database_is_rendered_as_markdown_or_hides_in_a_chart_or_widget(
    page: str, hostile_url: str, visit: Visit
) -> None:
    query = {"name": NAME} if page == "defense" else {}
    app = visit(hostile_url, page, **query)
    for element in app:
        kind, text = getattr(element, "type", ""), str(getattr(element, "proto", ""))
        if kind in ("markdown", "caption", "subheader", "header", "title", "metric", "expandable"):
            assert "evil" not in text, f"{kind}: {text[:300]}"
    labels = [box.label for box in app.expander if "evil" in box.label]
    assert labels or page != "defense"
    for label in labels:
        assert re.fullmatch("`[^`]+`", label), "not inline code"
    for box in app.selectbox:
        assert not any(is_hidden(c) for option in box.options for c in option), box.label
    for chart in app.get("vega_lite_chart"):
        spec = json.loads(chart.proto.spec)
        hidden = [text for text in strings(spec) if any(map(is_hidden, text))]
        assert hidden == []
        assert not [text for text in keys(spec) if text in ("href", "url")]


def strings(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inside in value.items():
            yield key
            yield from strings(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from strings(inside)


def keys(value: object) -> Iterator[str]:
    """Every key of an object in a JSON value."""
    if isinstance(value, dict):
        yield from value
    for inside in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from keys(inside)


def test_no_text_of_a_database_is_interpreted_in_an_export(
    hostile_url: str, tmp_path: Path
) -> None:
    snapshot.write_snapshot(hostile_url, tmp_path)
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 5
    for page in pages:
        found = [one for one in interpreted(page.read_text(encoding="utf-8")) if "http" not in one]
        assert found == [], page.name
        assert not any(map(is_hidden, page.name))


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_hostile_database_and_keeps_the_width(
    hostile_url: str, tmp_path: Path
) -> None:
    dialogs: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    for server in start(hostile_url, tmp_path / "log"):
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("dialog", dismiss)
            visitor = Visitor(page, server.url)
            for path in ("/", "/matrix", "/defense", "/submissions", "/rules"):
                visitor.go(f"{path}?{urlencode({'name': NAME})}" if path == "/defense" else path)
                wide = page.evaluate(
                    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                )
                assert wide <= 0, f"{path} is {wide} pixels too wide"
                links = page.eval_on_selector_all("a", "found => found.map(a => a.href)")
                assert [link for link in links if not link.startswith(server.url)] == [], path
                pictures = page.eval_on_selector_all("img", "found => found.map(i => i.src)")
                assert not [source for source in pictures if "evil" in source]
                if path == "/defense":
                    title = html.unescape(markup.text(NAME)).split()
                    assert page.inner_text(".g-head h1").split() == title
            assert visitor.outside == dialogs == []
            browser.close()
