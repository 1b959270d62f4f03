"""The report for a terminal: figures as k of n with their interval, flags as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]


MODES = {"full": "mode full", "rank": "mode rank: later attacks meet only the survivors"}


def render(report: Json) -> Group:
    """What `report` gave, as tables: ranking, matrix, detectors and raised flags."""
    flags = [(row["defense"], flag) for row in report["ranking"] for flag in row["flags"]]
    raised = [(defense, flag) for defense, flag in flags if flag["state"] == "raised"]
    shown: list[RenderableType] = [_heading(report), ranking(report), matrix(report)]
    shown += [detectors(report)] if any(square["detection"] for square in report["matrix"]) else []
    shown += [evidence(raised)] if raised else []
    return Group(*shown, *_notes(report["ranking"]))


def _heading(report: Json) -> Text:
    threat, examples = report["threat"], report["examples"]
    rules = f"{threat['set']['name']} {threat['set']['eps']} on {threat['dataset']}"
    return Text(
        f"{threat['name']}: {rules}, access {threat['access']}, {threat['goal']['kind']}, "
        f"{examples['n']} examples, {MODES[report['mode']]}, digest {report['digest'][:12]}"
    )


def ranking(report: Json) -> Table:
    """One line a defense."""
    table = _table(f"Ranking: {escape(report['threat']['name'])}")
    battery = report.get("profile")
    for name in [*_COLUMNS, *([battery["name"]] if battery else [])]:
        justify: JustifyMethod = "left" if name in _LEFT else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in _WORDS)
    for row in report["ranking"]:
        cells = (
            _rank(row),
            row["defense"],
            fraction(row["clean"]),
            _known(row["robust_required"]),
            fraction(row["robust"]),
            interval(row["robust"]),
            row["strongest"] or "-",
            done(row),
            _verdict(row),
            *([_together(row["profile"])] if battery else []),
        )
        table.add_row(*map(escape, cells))
    return table


_COLUMNS = (
    "Rank", "Defense", "Clean", "Required", "Robust", "95 %", "Strongest", "Done", "Verdict",
)  # fmt: skip
_LEFT = ("Defense", "Strongest", "Verdict")
_WORDS = ("Strongest", "Verdict")


def matrix(report: Json) -> Table:
    """Right after each attack, of n; states where there is no figure.

    In rank mode of those it met, the attacks in the order in which they came.
    """
    squares = {(one["defense"], one["attack"]): one for one in report["matrix"]}
    attacks = sorted({attack for _, attack in squares})
    cascade = report["mode"] == "rank"
    if cascade:
        met = {name: sum(_met(one) for (_, a), one in squares.items() if a == name)
               for name in attacks}  # fmt: skip
        attacks.sort(key=lambda name: -met[name])
    table = _table("Right after each attack" + ", of the survivors it met" * cascade)
    table.add_column("Defense", overflow="fold", no_wrap=True)
    for attack in attacks:
        table.add_column(escape(attack), justify="right", overflow="fold")
    for row in report["ranking"]:
        name = row["defense"]
        table.add_row(escape(name), *(escape(_square(squares[name, a])) for a in attacks))
    return table


def detectors(report: Json) -> Table:
    """What each detector rejects of clean images and of what each attack brought."""
    clean = {row["defense"]: row["rejects"]["clean"] for row in report["ranking"] if row["rejects"]}
    table = _table("Detectors: images rejected, and what got past")
    for name in ("Defense", "Attack", "AUC", "Clean", "Attacked", "Fooled", "Fooled, accepted"):
        table.add_column(name, justify="left" if name in ("Defense", "Attack") else "right")
    for square in report["matrix"]:
        if found := square["detection"]:
            name, counts = square["defense"], (found["rejected"], found["fooled"], found["passed"])
            told = (fraction(clean[name]), *map(fraction, counts))
            table.add_row(*map(escape, (name, square["attack"], f"{found['auc']:.3f}", *told)))
    return table


def evidence(raised: Iterable[tuple[str, Json]]) -> Table:
    """The raised flags with their sentences."""
    table = _table("Raised flags")
    for name in ("Defense", "Flag", "Evidence"):
        table.add_column(name, overflow="fold")
    for defense, flag in raised:
        table.add_row(*map(escape, (defense, flag["name"], flag["evidence"])))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def fraction(count: Json) -> str:
    """k/n."""
    return f"{count['k']}/{count['n']}"


def _known(count: Json) -> str:
    return fraction(count) if count["n"] else "-"


def done(row: Json) -> str:
    """How many of the required attacks are done, and how many others."""
    further = f" + {row['further']}" if row["further"] else ""
    return f"{row['coverage']['done']}/{row['coverage']['required']}{further}"


def interval(count: Json) -> str:
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


def _met(square: Json) -> int:
    return int(square["robust"]["n"]) if square["robust"] else 0


def _together(found: Json) -> str:
    """The figure over a profile's battery; without one, how much of it is done."""
    if found["robust"] is None:
        return f"{found['done']} of {found['attacks']} done"
    return fraction(found["robust"]) if found["robust"]["n"] else "not told apart"


def _square(square: Json) -> str:
    return fraction(square["robust"]) if square["robust"] else str(square["state"])


def _notes(rows: Iterable[Json]) -> list[Text]:
    """Each note once, with the entries it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            about.setdefault(row["note"], []).append(row["defense"])
    return [Text(f"{', '.join(names)}: {note}") for note, names in about.items()]
