"""The example database in a file, and the pages in Streamlit's test driver."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from bench.store import Store
from tests.leaderboard.example_database import add_attacks, fill

APP = Path(__file__).parents[2] / "leaderboard" / "app.py"
Visit = Callable[..., AppTest]


@pytest.fixture(scope="session")
def example_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with everything that the pages distinguish."""
    url = f"sqlite:///{tmp_path_factory.mktemp('example_url') / 'bench.db'}"
    with Store.open(url) as store:
        fill(store)
    return url


@pytest.fixture(scope="session")
def crowded_url(example_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the same database with many more attacks, ten of them without a result."""
    copy = tmp_path_factory.mktemp("crowded_url") / "bench.db"
    shutil.copy(example_url.removeprefix("sqlite:///"), copy)
    with Store.open(f"sqlite:///{copy}") as store:
        add_attacks(store, met=15, unmet=10)
    return f"sqlite:///{copy}"


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    """Opens a page on a database, with the query string as keywords; no page may raise."""

    def open_page(url: str, page: str = "ranking", **query: str | list[str]) -> AppTest:
        monkeypatch.setenv("BENCH_DB", url)
        app = AppTest.from_file(str(APP), default_timeout=60)
        if page != "ranking":
            app.switch_page(f"views/{page}.py")
        for key, value in query.items():
            app.query_params[key] = value
        app.run()
        assert not app.exception, app.exception
        return app

    yield open_page


MAIN = sys.modules["__main__"]


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Restores `__main__`, which a page that runs in this process replaces."""
    yield
    sys.modules["__main__"] = MAIN
