"""Folders follow the environment and are not created by looking them up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.core.folders import cache_folder, submissions_folder


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG folders of Linux")
def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gauntlet"
    assert not cache_folder().exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "gauntlet"


def test_the_submissions_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_SUBMISSIONS", raising=False)
    assert submissions_folder() == Path("submissions")
    monkeypatch.setenv("BENCH_SUBMISSIONS", "elsewhere")
    assert submissions_folder() == Path("elsewhere")
