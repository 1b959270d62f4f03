"""Values kept in files of the cache folder: read under their key, otherwise missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.core.json_cache import read_cached, write_cached


@pytest.mark.parametrize("value", [{"a": [1, 2.5, "x", None]}, [], "text", 0])
def test_a_value_is_read_under_its_key_alone(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "folder" / "value.json"
    assert read_cached(path, "key") is None
    write_cached(path, "key", value)
    assert read_cached(path, "key") == value
    assert read_cached(path, "another") is None
    assert [found.name for found in path.parent.iterdir()] == ["value.json"]


@pytest.mark.parametrize(
    "content", ["", "[", "[]", "{}", '{"body": 1}', '{"body": 1, "digest": "00"}', "[" * 100_000]
)
def test_a_damaged_file_counts_as_missing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(content)
    assert read_cached(path, "key") is None


def test_a_changed_value_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_cached(path, "key", {"ranked": False})
    stored = json.loads(path.read_text())
    stored["body"]["ranked"] = True
    path.write_text(json.dumps(stored))
    assert read_cached(path, "key") is None


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_cached(tmp_path / "file" / "value.json", "key", 1)
    assert read_cached(tmp_path / "file" / "value.json", "key") is None
