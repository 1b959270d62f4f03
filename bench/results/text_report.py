"""The report for a terminal: figures as k of n with their interval, flags as words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]


GAP = "  "
"""Between two columns: one for the padding, one for the box."""
MODES = {"full": "mode full", "rank": "mode rank: later attacks meet only the survivors"}


def text_report(report: Json) -> Group:
    """What `report` gave, as tables: ranking, matrix, detectors and raised flags."""
    flags = [(row["defense"], flag) for row in report["ranking"] for flag in row["flags"]]
    raised = [(defense, flag) for defense, flag in flags if flag["state"] == "raised"]
    shown: list[RenderableType] = [_heading(report), ranking_table(report), matrix_table(report)]
    shown += (
        [detector_table(report)] if any(square["detection"] for square in report["matrix"]) else []
    )
    shown += [warning_table(raised)] if raised else []
    return Group(*shown, *_notes(report["ranking"]))


def _heading(report: Json) -> Text:
    threat, examples = report["threat"], report["examples"]
    rules = f"{threat['set']['name']} {threat['set']['eps']} on {threat['dataset']}"
    return Text(
        f"{threat['name']}: {rules}, access {threat['access']}, {threat['goal']['kind']}, "
        f"{examples['n']} examples, {MODES[report['mode']]}, digest {report['digest'][:12]}"
    )


def ranking_table(report: Json) -> Table:
    """One line a defense."""
    table = _table(f"Ranking: {escape(report['threat']['name'])}")
    battery = report.get("suite")
    for name in [*_COLUMNS, *([battery["name"]] if battery else [])]:
        justify: JustifyMethod = "left" if name in _LEFT else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in _WORDS)
    for row in report["ranking"]:
        cells = (
            _rank(row),
            row["defense"],
            count_text(row["clean"]),
            _known(row["robust_required"]),
            count_text(row["robust"]),
            interval_text(row["robust"]),
            row["strongest"] or "-",
            coverage_text(row),
            _verdict(row),
            *([_together(row["suite"])] if battery else []),
        )
        table.add_row(*map(escape, cells))
    return table


_COLUMNS = (
    "Rank", "Defense", "Clean", "Required", "Robust", "95 %", "Strongest", "Done", "Verdict",
)  # fmt: skip
_LEFT = ("Defense", "Strongest", "Verdict")
_WORDS = ("Strongest", "Verdict")


UNMET = ("missing", "skipped", "not applicable")
"""States of a square that nobody has played."""


def matrix_table(report: Json) -> Group:
    """Right after each attack, of n; states where there is no figure.

    In rank mode of those it met, the attacks in the order in which they came. Attacks that nobody
    met are left out, and the longer list of names stands in lines.
    """
    squares = {(one["defense"], one["attack"]): one for one in report["matrix"]}
    every = list(dict.fromkeys(attack for _, attack in squares))
    cascade = report["mode"] == "rank"
    results = {attack for (_, attack), one in squares.items() if one["state"] not in UNMET}
    attacks = [name for name in every if name in results] or every
    shown = {pair: _square(one) for pair, one in squares.items()}
    defenses = [row["defense"] for row in report["ranking"]]
    title = "Right after each attack" + ", of the survivors it met" * cascade
    if len(attacks) > len(defenses):
        lines = {attack: [shown[name, attack] for name in defenses] for attack in attacks}
        return Group(Folded(title, ("Attack", *defenses), lines), *_left_out(every, attacks))
    lines = {name: [shown[name, attack] for attack in attacks] for name in defenses}
    return Group(Folded(title, ("Defense", *attacks), lines), *_left_out(every, attacks))


def _left_out(every: Sequence[str], shown: Sequence[str]) -> list[Text]:
    left = len(every) - len(shown)
    noun = "attack" if left == 1 else "attacks"
    return [Text(f"Left out: {left} {noun} that no defense has met.")] if left else []


@dataclass(frozen=True)
class Folded:
    """A table that goes on in another block where the screen is too narrow for its columns."""

    title: str
    names: Sequence[str]
    """The heads of the columns; the first heads the lines and stands in each block."""
    lines: Mapping[str, Sequence[str]]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Table]:
        """The blocks, one below the other."""
        head, *widths = self._widths(options.max_width // 2 - len(GAP))
        for number, block in enumerate(_blocks(widths, options.max_width - head - len(GAP))):
            table = _table(self.title if number == 0 else f"{self.title}, continued")
            table.add_column(self.names[0], width=head, overflow="fold")
            for at in block:
                name = escape(self.names[1 + at])
                table.add_column(name, width=widths[at], justify="right", overflow="fold")
            for name, cells in self.lines.items():
                table.add_row(escape(name), *(escape(cells[at]) for at in block))
            yield table

    def _widths(self, most: int) -> list[int]:
        """What each column asks for, cut where it is more than half of the screen."""
        columns = zip(*([name, *cells] for name, cells in self.lines.items()), strict=True)
        return [
            min(most, max(map(cell_len, (name, *column))))
            for name, column in zip(self.names, columns, strict=True)
        ]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns by number, as many in a block as there is room for, one at least."""
    blocks: list[list[int]] = []
    left = 0
    for at, width in enumerate(widths):
        left -= width + len(GAP)
        if left < 0 or not blocks:
            blocks.append([])
            left = room - width - len(GAP)
        blocks[-1].append(at)
    return blocks


def detector_table(report: Json) -> Table:
    """What each detector rejects of clean images and of what each attack brought."""
    clean = {row["defense"]: row["rejects"]["clean"] for row in report["ranking"] if row["rejects"]}
    table = _table("Detectors: images rejected, and what got past")
    for name in ("Defense", "Attack", "AUC", "Clean", "Attacked", "Fooled", "Fooled, accepted"):
        table.add_column(name, justify="left" if name in ("Defense", "Attack") else "right")
    for square in report["matrix"]:
        if found := square["detection"]:
            name, counts = square["defense"], (found["rejected"], found["fooled"], found["passed"])
            told = (count_text(clean[name]), *map(count_text, counts))
            table.add_row(*map(escape, (name, square["attack"], f"{found['auc']:.3f}", *told)))
    return table


def warning_table(raised: Iterable[tuple[str, Json]]) -> Table:
    """The raised flags with their sentences."""
    table = _table("Raised flags")
    for name in ("Defense", "Flag", "Evidence"):
        table.add_column(name, overflow="fold")
    for defense, flag in raised:
        table.add_row(*map(escape, (defense, flag["name"], flag["evidence"])))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def count_text(count: Json) -> str:
    """k/n."""
    return f"{count['k']}/{count['n']}"


def _known(count: Json) -> str:
    return count_text(count) if count["n"] else "-"


def coverage_text(row: Json) -> str:
    """How many of the required attacks are done, and how many others."""
    further = f" + {row['further']}" if row["further"] else ""
    return f"{row['coverage']['done']}/{row['coverage']['required']}{further}"


def interval_text(count: Json) -> str:
    """In percent, with no more decimals than n supports."""
    decimals = 1 if count["n"] < 10_000 else 2
    return f"{100 * count['low']:.{decimals}f}-{100 * count['high']:.{decimals}f}"


def _rank(row: Json) -> str:
    if row["rank"] is None:
        return "-"
    best, worst = row["rank"]
    return f"{best}" if best == worst else f"{best}-{worst}"


def _verdict(row: Json) -> str:
    """The verdict, how many flags are raised, and how many were tested at all."""
    raised = sum(flag["state"] == "raised" for flag in row["flags"])
    tested = sum(flag["state"] != "not tested" for flag in row["flags"])
    return f"{row['verdict']} {raised}/{tested}"


def _together(found: Json) -> str:
    """The figure over a suite's battery; without one, how much of it is done."""
    if found["robust"] is None:
        return f"{found['done']} of {found['attacks']} done"
    return count_text(found["robust"]) if found["robust"]["n"] else "not told apart"


def _square(square: Json) -> str:
    return count_text(square["robust"]) if square["robust"] else str(square["state"])


def _notes(rows: Iterable[Json]) -> list[Text]:
    """Each note once, with the entries it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            about.setdefault(row["note"], []).append(row["defense"])
    return [Text(f"{', '.join(names)}: {note}") for note, names in about.items()]
