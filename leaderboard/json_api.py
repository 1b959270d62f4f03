"""The read-only JSON API under `/api/v1`, the badge of a row as SVG, and the feed of new results.

Each address takes the same parameters as the page of the same name, and answers with the records
behind that page. Documents have an ETag; errors are one sentence under `error`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.core.cards import DefenseCard
from bench.core.cells import PROTOCOL, SCHEMA, CellState
from bench.core.errors import BenchError
from bench.results.leaderboards import Leaderboard
from leaderboard import badges, reading, states, words

SCHEMA_FILE = Path(__file__).with_name("api_schema.json")
"""The JSON Schema of every document."""
NOT_FOUND, BAD_REQUEST, UNAVAILABLE = 404, 400, 503


class AddressError(Exception):
    """A request that names something that is not there, or lacks a parameter."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def plain(value: Any) -> Any:
    """A record as JSON values: dataclasses and cards as objects, arrays as lists, infinity as null.

    >>> plain({"a": (1, np.float64("inf"))})
    {'a': [1, None]}
    """
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)


# Documents


def parameter(request: Request, name: str) -> str:
    """A parameter of the address; AddressError without it."""
    value = request.query_params.get(name)
    if not value:
        raise AddressError(BAD_REQUEST, f"The parameter {name!r} is missing from the address.")
    return value


def chosen_leaderboard(request: Request) -> tuple[str, Leaderboard]:
    """Label and leaderboard of the parameter `threat`, as the pages write it; else the first."""
    known = words.leaderboards_by_label(reading.read_leaderboards())
    label = request.query_params.get("threat") or next(iter(known), "")
    if label not in known:
        raise AddressError(
            NOT_FOUND, f"There is no leaderboard {label!r}: see /api/v1/leaderboards."
        )
    return label, known[label]


def index_document(_: Request) -> dict[str, Any]:
    """The addresses, and what the database is."""
    facts = reading.read_published()
    return {
        "protocol": PROTOCOL,
        "root": reading.read_root(),
        "published": None if facts is None else asdict(facts),
        "addresses": [route.path for route in ROUTES],
    }


def leaderboards_document(_: Request) -> dict[str, Any]:
    """Every leaderboard with its rules, by label."""
    known = words.leaderboards_by_label(reading.read_leaderboards())
    return {"leaderboards": [{"label": label, **plain(one)} for label, one in known.items()]}


def ranking_document(request: Request) -> dict[str, Any]:
    """The report of one leaderboard, as `bench report --json` prints it."""
    _, leaderboard = chosen_leaderboard(request)
    return reading.read_json_report(leaderboard)


def defense_document(request: Request) -> dict[str, Any]:
    """The card of a defense, and its row and cells on every leaderboard."""
    name = parameter(request, "name")
    card = next((card for card in reading.read_cards(DefenseCard) if card.name == name), None)
    if card is None:
        raise AddressError(NOT_FOUND, f"There is no defense {name!r} in this database.")
    found = {}
    for label, leaderboard in words.leaderboards_by_label(reading.read_leaderboards()).items():
        report = reading.read_json_report(leaderboard)
        rows = [row for row in report["ranking"] if row["defense"] == name]
        cells = [cell for cell in report["matrix"] if cell["defense"] == name]
        if rows:
            found[label] = {"row": rows[0], "cells": cells}
    return {"card": plain(card), "leaderboards": found}


def attack_document(request: Request) -> dict[str, Any]:
    """The report of an attack on one leaderboard."""
    label, leaderboard = chosen_leaderboard(request)
    name = parameter(request, "attack")
    if name not in reading.read_attack_names(leaderboard):
        raise AddressError(NOT_FOUND, f"There is no result of an attack {name!r} under {label!r}.")
    report = reading.read_attack_report(leaderboard, name)
    totals = {
        "done": report.done, "strongest_on": report.strongest_on,
        "broken_only_here": report.broken_only_here,
    }  # fmt: skip
    return {"threat": label, **plain(report), **totals}


def compare_document(request: Request) -> dict[str, Any]:
    """The paired comparison of the defenses that the parameters `with` name."""
    label, leaderboard = chosen_leaderboard(request)
    found = reading.read_comparison(leaderboard, tuple(request.query_params.getlist("with")))
    return {"threat": label, **plain(found), "pairs": [plain(one.record()) for one in found.pairs]}


def cell_document(request: Request) -> dict[str, Any]:
    """One cell, by the beginning of its key."""
    report = reading.read_cell_report(parameter(request, "key").strip().lower())
    return {**plain(report.row), "machines": plain(report.machines),
            "second": plain(report.second), "command": report.command}  # fmt: skip


def submissions_document(_: Request) -> dict[str, Any]:
    """Every submission with its states."""
    return {"submissions": plain(reading.read_submissions())}


def status_document(_: Request) -> dict[str, Any]:
    """How many cells are in each state, and how many running ones are stalled."""
    cells, now = reading.read_cells(), time.time()
    counts = Counter(str(cell.state) for cell in cells)
    running = [cell for cell in cells if cell.state == CellState.RUNNING]
    return {
        "cells": {str(state): counts[str(state)] for state in CellState},
        "stalled": sum(now - cell.updated > states.STALLED_AFTER for cell in running),
        "newest": max((cell.updated for cell in cells), default=None),
        "root": reading.read_root(),
    }


# Answers


def answer(request: Request, body: bytes, kind: str) -> Response:
    """The body with its ETag; 304 without a body where the client has it already."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    known = [part.strip().removeprefix("W/") for part in
             request.headers.get("if-none-match", "").split(",")]  # fmt: skip
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)


def failure(status: int, sentence: str) -> Response:
    """An error as a JSON document of one sentence."""
    body = json.dumps({"schema": SCHEMA, "error": sentence})
    return Response(body, status, media_type="application/json")


def guarded(make: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """An endpoint that answers a request it cannot serve with a status and one sentence."""

    def endpoint(request: Request) -> Response:
        try:
            return make(request)
        except AddressError as error:
            return failure(error.status, str(error))
        except BenchError as error:
            status = BAD_REQUEST if reading.is_readable() else UNAVAILABLE
            return failure(status, words.as_sentence(str(error)))

    return endpoint


def json_endpoint(make: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
    """An endpoint that answers with a JSON document."""

    def endpoint(request: Request) -> Response:
        document = {"schema": SCHEMA, **make(request)}
        body = json.dumps(plain(document), indent=1, allow_nan=False)
        return answer(request, body.encode(), "application/json")

    return guarded(endpoint)


@guarded
def schema_endpoint(request: Request) -> Response:
    """The JSON Schema of every document."""
    return answer(request, SCHEMA_FILE.read_bytes(), "application/schema+json")


@guarded
def badge_endpoint(request: Request) -> Response:
    """The badge of a defense under a threat model as an SVG image."""
    label, leaderboard = chosen_leaderboard(request)
    row = reading.read_row(leaderboard, parameter(request, "name"))
    if row is None:
        name = request.query_params["name"]
        raise AddressError(NOT_FOUND, f"There is no row of a defense {name!r} under {label!r}.")
    newest = badges.newest_of_defense(reading.read_cells(), leaderboard, row.defense)
    drawn = badges.badge(row, label, newest)
    return answer(request, drawn.encode(), "image/svg+xml")


@guarded
def feed_endpoint(request: Request) -> Response:
    """The newest results as an Atom feed."""
    known = words.leaderboards_by_label(reading.read_leaderboards())
    base = str(request.base_url).rstrip("/")
    drawn = badges.feed(known, reading.read_cells(), base)
    return answer(request, drawn.encode(), "application/atom+xml")


DOCUMENTS: Mapping[str, Callable[[Request], dict[str, Any]]] = {
    "": index_document,
    "/leaderboards": leaderboards_document,
    "/ranking": ranking_document,
    "/defense": defense_document,
    "/attack": attack_document,
    "/compare": compare_document,
    "/cell": cell_document,
    "/submissions": submissions_document,
    "/status": status_document,
}
"""Path below `/api/v1` -> its document."""
ROUTES = [
    *(Route(f"/api/v1{path}", json_endpoint(make)) for path, make in DOCUMENTS.items()),
    Route("/api/v1/schema.json", schema_endpoint),
    Route("/api/v1/badge.svg", badge_endpoint),
    Route("/api/v1/feed.xml", feed_endpoint),
]
