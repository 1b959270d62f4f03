"""Files of killed processes: removed at the next start, never while their process runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench.store import Store, process_id
from bench.store.leftovers import (
    ELSEWHERE_SECONDS,
    abandoned_folders,
    owned_prefix,
    partial_path,
    remove_folder,
)
from tests.store.chunks import AWAY


@pytest.mark.parametrize("name", ["abc.safetensors", "bench.db.0006.backup", ".space"])
def test_a_partial_file_is_removed_once_its_process_has_ended(
    name: str, dead: str, tmp_path: Path
) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        folder = store.artifacts / "ab" if name.startswith("abc") else tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        mine = partial_path(folder / name)
        theirs = mine.with_name(mine.name.replace(process_id(), AWAY))
        left = mine.with_name(mine.name.replace(process_id(), dead))
        whole = folder / name
        for file in (mine, theirs, left, whole):
            file.write_text("")
        assert store.remove_leftovers() == [left]
        assert not left.exists() and mine.exists() and theirs.exists() and whole.exists()
        before = time.time() - ELSEWHERE_SECONDS - 60
        download = folder / "film.2026.partial"
        download.write_text("")
        for file in (mine, theirs, whole, download):
            os.utime(file, (before, before))
        assert store.remove_leftovers() == [theirs]
        assert mine.exists() and whole.exists() and download.exists()


def test_a_temporary_folder_is_abandoned_once_its_process_has_ended(
    dead: str, tmp_path: Path
) -> None:
    mine = tmp_path / f"{owned_prefix('.incoming-')}xyz"
    left = tmp_path / mine.name.replace(process_id(), dead)
    for folder in (mine, left, tmp_path / ".incoming-old"):
        (folder / "name").mkdir(parents=True)
    assert abandoned_folders(tmp_path, ".incoming-") == [left]
    remove_folder(left)
    assert not left.exists() and mine.exists()
