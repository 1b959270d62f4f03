"""Writes a picture of the README: a page of a database, as a browser shows it.

bench run --db picture.db
python -m tests.tools.picture picture.db docs/matrix.png
python -m tests.tools.picture picture.db docs/ranking.png
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, ViewportSize, sync_playwright

from tests.leaderboard.test_browser import FLAGS, SETTLED, chromium

PAGE: ViewportSize = {"width": 1200, "height": 900}
PART: FloatRect = {"x": 0, "y": 60, "width": 1200, "height": 780}
"""The part of the page that is saved, in pixels."""
PARTS = ("stHeader", "stSidebar", "stToolbar")
HIDDEN = "".join(f"[data-testid={part}] {{ display: none !important }} " for part in PARTS)
CHART = "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg"


def save(address: str, out: Path) -> None:
    """Open the page that the file is named after and save its upper part."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport=PAGE, color_scheme="light")
        page.goto(f"{address}/{'' if out.stem == 'ranking' else out.stem}")
        page.add_style_tag(content=HIDDEN)
        page.locator(f"{CHART}, .g-table").first.wait_for(state="attached")
        page.wait_for_selector(SETTLED)
        page.wait_for_timeout(1000)
        page.screenshot(path=out, clip=PART)
        browser.close()
    Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


def main(database: str, out: str) -> None:
    """Serve the database on a free port and save the picture."""
    command = ["leaderboard", "--no-open", "--port", "0", "--db", database]
    words = [sys.executable, "-m", "bench.cli", *command]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            lines = iter(server.stderr.readline, "")
            address = re.search(r"http://\S+", next(x for x in lines if "Leaderboard:" in x))
            assert address
            save(address[0], Path(out))
        finally:
            server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
