"""The made-up world in a file, and the pages as the app's test driver sees them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from bench.store import Store
from tests.leaderboard.example_database import crowd, fill

APP = Path(__file__).parents[2] / "leaderboard" / "app.py"
Visit = Callable[..., AppTest]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a database with everything that the pages must tell apart."""
    url = f"sqlite:///{tmp_path_factory.mktemp('world') / 'bench.db'}"
    with Store.open(url) as store:
        fill(store)
    return url


@pytest.fixture(scope="session")
def crowded(world: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same world after many more attacks, ten of which met nobody."""
    copy = tmp_path_factory.mktemp("crowded") / "bench.db"
    shutil.copy(world.removeprefix("sqlite:///"), copy)
    with Store.open(f"sqlite:///{copy}") as store:
        crowd(store, met=15, unmet=10)
    return f"sqlite:///{copy}"


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    """Open a page of the app on a database, with a query string as keywords; none may raise."""

    def open_page(url: str, page: str = "ranking", **query: str) -> AppTest:
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
    """A page run in this process takes the place of `__main__`, which child processes import."""
    yield
    sys.modules["__main__"] = MAIN
