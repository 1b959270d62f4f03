"""Docstrings state shapes and errors, and retired words are gone from code, texts and tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import language
from tests.tools.language import EVERYTHING, EXEMPT, errors, retired, shapes, words


def listed(places: list[language.Place]) -> str:
    return "\n".join(map(str, places))


def test_public_functions_with_tensors_state_a_shape() -> None:
    found = shapes("bench", "plugins")
    assert found.total > 300
    assert found.reached >= 0.95, listed(found.missing)


def test_public_functions_that_raise_name_the_error() -> None:
    found = errors("bench", "plugins")
    assert found.total > 80
    assert found.reached >= 0.9, listed(found.missing)


def test_retired_words_are_gone() -> None:
    found = retired(*EVERYTHING)
    assert found == [], listed(found)


def test_every_exempt_word_is_still_there() -> None:
    for file, word in EXEMPT:
        text = (language.ROOT / file).read_text()
        assert list(words(text)), f"{file} has no `{word}` any more: remove it from EXEMPT"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("class TinyArena: pass", ["arena"]),
        ("the_last_seat = 1", ["seat"]),
        ("two LESSONS and three shelves", ["lessons", "shelves"]),
        ("locked\nin, stand-in, stand_ins", ["locked in", "stand-in", "stand_ins"]),
        ("the outdoor courtesy of a household, a coarse discourse", []),
        ("blocked in the queue", []),
    ],
)
def test_words_are_found_in_every_spelling(text: str, found: list[str]) -> None:
    assert [word for _, word in words(text)] == found


def test_lines_are_counted_from_the_start_of_the_file() -> None:
    assert list(words("one\ntwo doors\nthree", line=10)) == [(11, "doors")]


@pytest.mark.parametrize(
    ("text", "is_shape"),
    [
        ("images [n, C, H, W]", True),
        ("labels [n]", True),
        ("the mean [1, *set.shape]", True),
        ("pixels in [0, 1]", False),
        ("the first image", False),
    ],
)
def test_a_shape_is_told_from_an_interval(text: str, is_shape: bool) -> None:
    assert bool(language.SHAPE.search(text)) == is_shape


def test_renamed_names_are_exempt_between_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "ROOT", tmp_path)
    page = tmp_path / "CHANGELOG.md"
    page.write_text(f"a\n{language.OPEN}\n| Lesson | TrainingBatch |\n{language.CLOSE}\na door\n")
    assert listed(retired("CHANGELOG.md")) == "CHANGELOG.md:5: door"
