"""The pages in a browser with their security headers, served by `bench leaderboard`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, sync_playwright

from leaderboard import words
from leaderboard.server import CONTENT_POLICY
from tests.leaderboard.example_database import DEFENSES, HOSTILE

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-background-networking"]  # fmt: skip
SERVE = (
    "import signal, sys; from bench.cli.serve import serve; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background shell ignores it
    "sys.exit(serve(port={port}, open_browser=False))"
)
SETTLED = "[data-testid=stApp][data-test-script-state=notRunning]"
PATIENCE = 30_000  # milliseconds


def chromium() -> str:
    """The browser, or a skip with the reason."""
    asked = os.environ.get("BENCH_CHROMIUM")
    found = asked or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        message = f"no browser: none of {', '.join(NAMES)} on PATH, BENCH_CHROMIUM is not set"
        if os.environ.get("BENCH_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


class Server(NamedTuple):
    url: str
    process: subprocess.Popen[str]


def start(db: str, log: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as stderr:
        process = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(port=port)], env={**os.environ, "BENCH_DB": db},
        stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while "Leaderboard: " not in log.read_text() and process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    assert process.poll() is None, log.read_text()
    yield Server(f"http://127.0.0.1:{port}", process)
    os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.communicate()


@pytest.fixture(scope="module")
def server(example_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    chromium()
    yield from start(example_url, tmp_path_factory.mktemp("log") / "server.log")


class Visitor:
    """One browser page; requests to other hosts are refused and recorded."""

    def __init__(self, page: Page, home: str) -> None:
        self.page = page
        self.home = home
        self.outside: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.route("**/*", self._guard)

    def _guard(self, route: Route) -> None:
        url = route.request.url
        if url.startswith((self.home, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def go(self, path: str = "/") -> Page:
        self.page.goto(self.home + path)
        self.settle()
        return self.page

    def settle(self) -> None:
        self.page.wait_for_selector(".g-head")
        self.page.wait_for_selector(SETTLED)
        errors = self.page.locator("[data-testid=stException]").all_inner_texts()
        assert errors == []

    def said(self) -> str:
        return self.page.inner_text("[data-testid=stMain]")


@pytest.fixture(scope="module")
def visitor(server: Server) -> Iterator[Visitor]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        yield Visitor(page, server.url)
        browser.close()


def test_pages_render_under_the_content_policy_with_their_own_titles(visitor: Visitor) -> None:
    titles = set()
    for path in ("/", "/matrix", "/defense?name=bit-depth-3", "/submissions", "/rules"):
        page = visitor.go(path)
        assert page.locator("[role=dialog]").count() == 0, f"{path} is not found"
        titles.add(page.title())
    assert len(titles) == 5 and all(title.endswith("Gauntlet") for title in titles)
    assert visitor.outside == []


def test_rank_mode_has_its_own_leaderboard_with_an_explanation(visitor: Visitor) -> None:
    page = visitor.go("/?threat=digits-linf%20in%20rank%20mode")
    assert page.inner_text(".g-head h1") == "Robust accuracy under digits-linf in rank mode"
    assert "no attack is called the strongest" in page.inner_text(".g-mode")
    names = page.locator(".g-table tbody tr").all_inner_texts()
    assert len(names) == 3 and not any("half-evaluated" in name for name in names)
    page.get_by_role("link", name="Matrix").click()
    page.wait_for_selector("text=Attacks against defenses under digits-linf in rank mode")
    visitor.settle()
    page.locator("[data-testid=stVegaLiteChart]").locator("canvas, svg").first.wait_for()
    page.get_by_text("The same as a table").click()
    assert "Robust of the examples met" in page.inner_text("[data-testid=stExpander] table")
    visitor.go("/matrix?threat=digits-linf")
    assert page.locator(".g-mode").count() == 0
    assert visitor.outside == []


def test_charts_are_drawn_and_have_descriptions(visitor: Visitor) -> None:
    page = visitor.go("/")
    charts = page.locator("[data-testid=stVegaLiteChart]")
    charts.nth(1).locator("canvas, svg").first.wait_for()
    assert charts.count() == 2
    assert (
        page.locator("[aria-label*='trades is first; its robust accuracy is 69.4 %']").count() == 1
    )
    assert visitor.outside == []


def test_the_packaged_theme_is_used(visitor: Visitor) -> None:
    page = visitor.go("/rules")
    colour = page.evaluate("getComputedStyle(document.querySelector('.g-head h1')).color")
    assert colour == "rgb(23, 33, 43)"


def test_a_hostile_name_causes_no_request_to_another_host(visitor: Visitor) -> None:
    page = visitor.go("/")
    page.get_by_role("link", name=HOSTILE).click()
    visitor.page.wait_for_selector("text=Identity")
    visitor.settle()
    assert page.inner_text(".g-head h1") == HOSTILE
    visitor.go("/matrix")
    page.get_by_text("The same as a table").click()
    visitor.go("/submissions")
    assert visitor.outside == []
    assert page.locator("img[src*='evil']").count() == 0


def test_a_selection_is_written_to_the_url_and_read_from_it(visitor: Visitor) -> None:
    page = visitor.go("/matrix?threat=digits-l2&metric=fragile%20successes")
    assert "under digits-l2" in page.inner_text(".g-head h1")
    assert "Broken examples whose margin" in visitor.said()
    page.get_by_role("link", name="Ranking").click()
    page.wait_for_selector("text=Robust accuracy under digits-l2")
    assert "threat=digits-l2" in page.url
    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="digits-linf-nearest").click()
    page.wait_for_selector("text=Robust accuracy under digits-linf-nearest")
    page.wait_for_url("**threat=digits-linf-nearest**")


def test_the_default_selection_is_written_to_the_url(visitor: Visitor) -> None:
    page = visitor.go("/defense?threat=digits-l2")
    shown = page.inner_text(".g-head h1")
    page.wait_for_url(f"**name={shown}**")
    visitor.go(page.url.removeprefix(visitor.home).replace("digits-l2", "digits-linf"))
    assert page.inner_text(".g-head h1") == shown
    clear = page.locator("[aria-label='Clear value']").last
    assert not clear.is_visible()
    clear.dispatch_event("click")
    page.wait_for_url("**attack=**")
    visitor.settle()
    for title in ("Ranking", "Matrix", "Defense"):
        page.get_by_role("link", name=title, exact=True).click()
        page.wait_for_url("**/?**" if title == "Ranking" else f"**/{title.lower()}?**")
        visitor.settle()
    page.wait_for_url("**name=**")


def test_changing_the_threat_model_shows_no_notice_about_the_figure(visitor: Visitor) -> None:
    page = visitor.go("/matrix?threat=digits-linf")
    page.wait_for_url("**metric=robust*accuracy**")
    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="digits-linf in rank mode").click()
    page.wait_for_selector(".g-mode")
    page.wait_for_url("**metric=robust*of**")
    visitor.settle()
    assert "This link names" not in visitor.said()


def test_a_stale_link_shows_a_notice_in_the_browser(visitor: Visitor) -> None:
    visitor.go("/?threat=retired")
    assert "“retired” is not in this database" in visitor.said()


def test_on_a_phone_the_table_scrolls_and_not_the_page(visitor: Visitor) -> None:
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    try:
        for path in ("/", "/defense"):
            page = visitor.go(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            main = page.locator("[data-testid=stMain]")
            assert main.evaluate("e => e.scrollWidth <= e.clientWidth")
    finally:
        visitor.page.set_viewport_size({"width": 1280, "height": 900})


def test_the_matrix_is_a_table_on_a_phone_and_a_chart_on_a_wide_screen(
    visitor: Visitor,
) -> None:
    page = visitor.go("/matrix")
    chart, table = page.locator("[data-testid=stVegaLiteChart]"), page.locator(".g-grid")
    chart.locator("canvas, svg").first.wait_for()
    assert chart.is_visible() and not table.is_visible()
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    try:
        visitor.go("/matrix")
        assert table.is_visible() and not chart.is_visible()
        main = page.locator("[data-testid=stMain]")
        assert main.evaluate("e => e.scrollWidth <= e.clientWidth")
        cells = table.locator("td")
        assert cells.evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth)")
    finally:
        visitor.page.set_viewport_size({"width": 1280, "height": 900})


def test_a_download_has_exactly_the_shown_rows(visitor: Visitor) -> None:
    page = visitor.go("/?q=tra")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    lines = waiting.value.path().read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["defense", "trades", "adversarial-training"]
    for label, row, other in (
        ("Markdown", "| trades |", "undefended"), ("LaTeX", "trades &", "undefended"),
        ("BibTeX", "@inproceedings{arxiv:1706.06083", "1901.08573"),
    ):  # fmt: skip
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Download {label}").click()
        text = waiting.value.path().read_text()
        assert row in text and other not in text, label


def test_pictures_tables_and_scrolling_boxes_are_accessible(visitor: Visitor) -> None:
    page = visitor.go("/defense?name=bit-depth-3")
    assert page.locator(".g-picture").count() >= 3
    assert page.locator(".g-picture:not([alt]), .g-picture[alt='']").count() == 0
    assert page.locator("table.g-table th:not([scope])").count() == 0
    assert page.locator(".g-scroll:not([tabindex])").count() == 0
    assert page.locator("h1").count() == 1


def test_the_first_row_is_above_the_fold(visitor: Visitor) -> None:
    first = visitor.go("/").locator(".g-table tbody tr").first
    box = first.bounding_box()
    assert box is not None and box["y"] < 350
    lead = visitor.page.inner_text(".g-lead")
    assert "is first with" in lead and "95 % interval" in lead and "500 images" in lead
    assert words.PRODUCT_VERSION in lead and "newest result 20" in lead
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    try:
        page = visitor.go("/")
        box = page.locator(".g-table tbody tr").first.bounding_box()
        assert box is not None and box["y"] < 844 / 2 + 100
        labels = (
            page.locator(".g-cards tbody tr")
            .first.locator("td")
            .evaluate_all("cells => cells.map(e => getComputedStyle(e, '::before').content)")
        )
        assert '"Robust accuracy ↑"' in labels, "a card names its figures"
        wide = page.locator(".g-cards").evaluate("e => e.scrollWidth <= e.clientWidth")
        assert wide, "a card does not scroll sideways"
    finally:
        visitor.page.set_viewport_size({"width": 1280, "height": 900})


def test_filters_and_order_are_part_of_the_url(visitor: Visitor) -> None:
    page = visitor.go("/?trait=claim&sort=name")
    names = page.locator(".g-table tbody td.g-name a").all_inner_texts()
    assert names == ["adversarial-training", "bit-depth-3", "trades"]
    hidden = len(DEFENSES) - len(names)
    assert f"{hidden} hidden by properties." in visitor.said()
    page.get_by_role("button", name="Show all").click()
    page.wait_for_selector("text=hidden by", state="detached")
    visitor.settle()
    assert page.locator(".g-table tbody tr").count() == len(DEFENSES)
    page.get_by_text("Filter and order").click()
    page.get_by_role("button", name="rejects", exact=True).click()
    page.wait_for_url("**trait=rejects**")
    page.keyboard.press("Escape")
    page.get_by_text("Find a threat model").click()
    page.get_by_role("button", name="L2", exact=True).click()
    page.wait_for_selector("text=Robust accuracy under digits-l2")
    page.wait_for_url("**norm=L2**")


AXE_PAGES = (
    "/", "/matrix", "/defense?name=bit-depth-3", "/attack?attack=pgd",
    "/compare?with=trades&with=undefended", "/cell", "/union", "/submissions", "/rules",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visitor: Visitor, scheme: Literal["light", "dark"]) -> None:
    visitor.page.emulate_media(color_scheme=scheme)
    found = {}
    try:
        for path in AXE_PAGES:
            page = visitor.go(path)
            for chart in page.locator("[data-testid=stVegaLiteChart]").all():
                chart.locator("canvas, svg").first.wait_for()
            for violation in Axe().run(page).response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    found[path, violation["id"]] = violation["nodes"][0]["html"][:200]
    finally:
        visitor.page.emulate_media(color_scheme="light")
    assert found == {}


def test_every_response_has_the_content_policy(server: Server) -> None:
    for path in ("/", "/matrix", "/_stcore/health"):
        with urllib.request.urlopen(server.url + path) as answer:
            assert answer.headers["Content-Security-Policy"] == CONTENT_POLICY
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe-eval" not in CONTENT_POLICY and "script-src 'self';" in CONTENT_POLICY


def test_an_interrupt_ends_the_server_with_code_0(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    out, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 0
    assert out == "", "stdout is for data"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.url.rpartition(":")[2]))) != 0
