"""The page about PostgreSQL, followed on a server of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.walk import Reader
from tests.store.conftest import postgres as postgres
from tests.store.conftest import server as server

PAGE = "docs/howto/postgresql.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, monkeypatch, server)
    reader.follow(PAGE)
    assert "undefended" in reader.stdout
    assert not list(tmp_path.glob("*.db"))
