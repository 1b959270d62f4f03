"""Tables for a terminal of any width: columns that do not fit continue in a further block."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod
from rich.table import Table
from rich.text import Text

GAP = 2
"""Characters between two columns: the padding and the box."""
EDGE = 1
"""Characters of the table beyond its columns and gaps."""
NARROWEST_KEY = 12
"""A key column is not made narrower than this."""


@dataclass(frozen=True)
class TextColumn:
    """The heading of a column; left-justified columns hold names and sentences, others figures."""

    name: str
    justify: JustifyMethod = "right"

    def pieces(self, cell: str) -> list[str]:
        """The parts of a cell between which a line may break: words, or a whole figure."""
        is_figure = self.justify == "right" and any(letter.isdigit() for letter in cell)
        return [cell] if is_figure else cell.split()


@dataclass(frozen=True)
class BlockTable:
    """A table whose columns continue in a further block where the terminal is too narrow.

    Words and figures are never broken, unless a single word is longer than the terminal allows.
    """

    title: str
    columns: Sequence[TextColumn]
    rows: Sequence[Sequence[str]]
    keys: int = 1
    """The first columns, which every block repeats."""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        """The title and the table of each block."""
        widths = self.widths(options.max_width)
        for number, block in enumerate(self.blocks(widths, options.max_width)):
            yield Text(self.title if number == 0 else f"{self.title}, continued", style="italic")
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            shown = [*range(self.keys), *block]
            for at in shown:
                column = self.columns[at]
                heading = Text(wrap(column.name, widths[at]))
                table.add_column(heading, width=widths[at], justify=column.justify, no_wrap=True)
            for row in self.rows:
                table.add_row(*(Text(wrap(row[at], widths[at])) for at in shown))
            yield table

    def widths(self, room: int) -> list[int]:
        """The width of each column on a terminal of `room` characters."""
        whole = [max(map(cell_len, cells)) for cells in self._cells()]
        if _total(whole) <= room:
            return whole
        words = [self._longest_piece(at) for at in range(len(self.columns))]
        spare = room - _total(words)
        if spare < 0:
            return self._block_widths(whole, words, room)
        for at, width in enumerate(whole):
            added = min(spare, width - words[at])
            words[at], spare = words[at] + added, spare - added
        return words

    def blocks(self, widths: Sequence[int], room: int) -> list[list[int]]:
        """The columns of each block by number, without the keys; at least one in each."""
        blocks: list[list[int]] = []
        keys = _total(widths[: self.keys])
        used = room
        for at in range(self.keys, len(widths)):
            used += widths[at] + GAP
            if used > room:
                blocks.append([])
                used = keys + widths[at] + GAP
            blocks[-1].append(at)
        return blocks or [[]]

    def _block_widths(self, whole: list[int], words: list[int], room: int) -> list[int]:
        keys, others = words[: self.keys], words[self.keys :]
        missing = _total(keys) + max(others, default=0) + GAP - room
        if missing > 0:
            longest = keys.index(max(keys))
            keys[longest] = max(min(NARROWEST_KEY, keys[longest]), keys[longest] - missing)
        left = max(1, room - _total(keys) - GAP)
        return [*keys, *(min(width, left) for width in whole[self.keys :])]

    def _cells(self) -> Iterator[list[str]]:
        for at, column in enumerate(self.columns):
            yield [column.name, *(row[at] for row in self.rows)]

    def _longest_piece(self, at: int) -> int:
        column = self.columns[at]
        cells = [piece for row in self.rows for piece in column.pieces(row[at])]
        return max(map(cell_len, [*column.name.split(), *cells]))


def wrap(text: str, width: int) -> str:
    """The text in lines of at most `width`, broken at spaces, else at hyphens, else anywhere."""
    if cell_len(text) <= width:
        return text
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    parts = [[line] if len(line) <= width else textwrap.wrap(line, width) for line in lines]
    return "\n".join(part for line in parts for part in line)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * len(widths) + EDGE
