"""Characters that cannot be seen, and texts of strangers without them."""

from __future__ import annotations

import re
import unicodedata

IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2060-\u206f\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Characters of Unicode's property Default_Ignorable_Code_Point; the others are in category C."""
MOST_MARKS = 3
"""Combining marks after one character; more of them cover the lines above and below."""
_MARK = r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_PILE = re.compile(f"({_MARK}{{{MOST_MARKS}}}){_MARK}+")


def is_hidden(character: str) -> bool:
    """Whether a character shows nothing, or changes how others are shown.

    These are controls, marks of direction, zero-width characters, fillers, line separators and
    characters without a meaning.

    >>> [is_hidden(c) for c in "a \\u202e\\u200b\\u3164\\u2028"]
    [False, False, True, True, True, True]
    """
    kind = unicodedata.category(character)
    return kind[0] == "C" or kind in ("Zl", "Zp") or IGNORABLE.match(character) is not None


def encodable_text(text: str) -> str:
    """A text with its halves of characters, which no file or database can hold, as escapes.

    >>> encodable_text("a" + chr(0xDCFF)) == "a" + chr(92) + "udcff"
    True
    """
    return text.encode(errors="backslashreplace").decode()


def visible_text(text: str) -> str:
    """A text on one line: a space for each hidden character, no piles of combining marks.

    >>> visible_text("gpj.\\u202eexe\\n")
    'gpj. exe '
    """
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(" " if is_hidden(c) else c for c in text)
    return _PILE.sub(r"\1", shown)
