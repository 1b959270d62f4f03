"""Hidden characters of texts, and what is left of a text without them."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.visible_text import MOST_MARKS, is_hidden, visible_text

HIDDEN = {
    "right-to-left override": "\u202e", "left-to-right isolate": "\u2066", "arabic mark": "\u061c",
    "zero-width space": "\u200b", "zero-width joiner": "\u200d", "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad", "grapheme joiner": "\u034f", "hangul filler": "\u3164",
    "halfwidth filler": "\uffa0", "mongolian selector": "\u180b", "variation selector": "\ufe0f",
    "further selector": "\U000e0100", "tag": "\U000e0041", "line separator": "\u2028",
    "paragraph separator": "\u2029", "next line": "\x85", "escape": "\x1b", "null": "\0",
    "surrogate": "\ud800", "private use": "\ue000", "unassigned": "\u0378",
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_character_becomes_a_space(name: str) -> None:
    assert is_hidden(HIDDEN[name])
    assert visible_text(f"a{HIDDEN[name]}b") == "a b"


@pytest.mark.parametrize(
    "text",
    ["Madry et al.", "naïve", "Tiếng Việt", "हिन्दी", "ภาษาไทย", "עברית", "中文", "∞ ≤ 8/255", ""],
)
def test_a_readable_text_stays(text: str) -> None:
    assert visible_text(text) == text
    assert visible_text(unicodedata.normalize("NFD", text)) == unicodedata.normalize("NFD", text)


def test_a_pile_of_combining_marks_is_cut() -> None:
    piled = "a" + "\u0301\u0338\u20dd" * 9 + "b"
    assert visible_text(piled) == "a\u0301\u0338\u20ddb"
    assert MOST_MARKS == 3


@given(st.text(st.characters(max_codepoint=sys.maxunicode)))
def test_no_text_keeps_a_hidden_character_or_changes_twice(text: str) -> None:
    shown = visible_text(text)
    assert not any(map(is_hidden, shown))
    assert visible_text(shown) == shown
