"""Cards of all plugins, cached on disk so that listing them does not import their code.

The cache is one JSON file per import path and submissions folder. It stands under a key that
digests everything that decides the cards; where the key or the content does not match, the
registry is loaded and the file is written anew. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import plugins
from bench.core import cards
from bench.core.cards import CARD_MODELS, Card, card_record
from bench.core.folders import cache_folder, submissions_folder
from bench.core.hashing import canonical, digest
from bench.core.json_cache import read_cached, write_cached

HASHED_BYTES = 1 << 20
"""Size up to which a file's content is digested; a larger file is identified by its status."""
EXTERNAL_DATA = "BENCH_IMAGE_FOLDER"
"""Environment variable with which a card describes data outside the code: nothing is cached."""
CACHED_ENVIRONMENT = "BENCH_"
"""Prefix of the environment variables that plugins may read; they are part of the key."""
RESULTS_ONLY = {"BENCH_DB", "BENCH_ARTIFACTS"}
"""Variables with this prefix that name where results lie and decide no card."""


class ListedCards(NamedTuple):
    """What `bench list` and `bench show` print."""

    cards: tuple[Card, ...]
    problems: tuple[str, ...]
    """One sentence for each plugin that was refused."""


def indexed_cards(load: Callable[[], ListedCards]) -> ListedCards:
    """Cards from the index where it is current, else from `load`, which loads the registry."""
    if EXTERNAL_DATA in os.environ:
        return load()
    key = index_key()
    path = index_path()
    found = _read(path, key)
    if found is None:
        loaded = load()
        body = _body(loaded)
        if index_key() == key:  # no file has changed while the registry was loaded
            write_cached(path, key, body)
        found = _listed(body)  # as a later call reads them
    return found


def index_path() -> Path:
    """The file of the index for this import path and this submissions folder."""
    places = [*sys.path, str(submissions_folder().resolve())]
    return cache_folder() / "cards" / f"{digest(places)[:16]}.json"


def index_key() -> str:
    """SHA-256 of everything that decides the cards.

    That is: the code, environment variables of plugins, and every file of the submissions folder.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(CACHED_ENVIRONMENT) and name not in RESULTS_ONLY
    }
    submitted = [_file(path) for path in _submitted(submissions_folder())]
    return digest({"code": code_key(), "environment": variables, "submissions": submitted})


def code_key() -> str:
    """SHA-256 of the code that decides what a plugin declares.

    That is: the interpreter, the source of bench, of plugins and of every package with an entry
    point, and the names of all installed modules and distributions (they decide which optional
    libraries are there).
    """
    points = sorted(entry_points(group="bench"), key=lambda point: (point.name, point.value))
    folders = [*_own_folders(), *(place for point in points for place in _package(point))]
    return digest(
        {
            "python": sys.version,
            "entry points": [_entry_point(point) for point in points],
            "source": [_file(path) for folder in folders for path in _sources(folder)],
            "installed": sorted(set(_installed())),
        }
    )


def _own_folders() -> tuple[Path, Path]:
    return Path(str(cards.__file__)).parents[1], Path(plugins.__path__[0])


def _entry_point(point: EntryPoint) -> list[str]:
    distribution = point.dist
    version = [distribution.name, distribution.version] if distribution else []
    return [point.name, point.value, *version]


def _package(point: EntryPoint) -> list[Path]:
    """Folder or file of the top-level package that an entry point names; nothing is imported."""
    spec = find_spec(point.value.partition(":")[0].partition(".")[0])
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


def _sources(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    yield from sorted(path for path in place.rglob("*.py") if path.is_file())


def _installed() -> Iterator[str]:
    """Names of importable modules and of distributions with their versions, in every folder."""
    for place in filter(os.path.isdir, sys.path):
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir() or entry.name.endswith((".py", ".pth", ".so", ".pyd")):
                    yield entry.name


def _submitted(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links and hidden files included."""
    return iter(sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()))


def _file(path: Path) -> list[Any]:
    """What identifies a file: its place, and its content or, where it is large, its status."""
    try:
        status = path.lstat()
        if path.is_symlink() or status.st_size > HASHED_BYTES:
            content = repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:  # removed meanwhile, or not readable
        return [str(path), type(error).__name__]
    return [str(path), status.st_mode, content]


def _read(path: Path, key: str) -> ListedCards | None:
    """The cards that a file holds under this key; None where it is missing, old or damaged."""
    body = read_cached(path, key)
    try:
        return None if body is None else _listed(body)
    except (ValueError, LookupError, TypeError):
        return None


def _body(found: ListedCards) -> dict[str, Any]:
    """Cards as JSON values, exactly as they are read back."""
    body = {"cards": [card_record(card) for card in found.cards], "problems": found.problems}
    values: dict[str, Any] = json.loads(canonical(body))
    return values


def _listed(body: Mapping[str, Any]) -> ListedCards:
    return ListedCards(tuple(map(_card, body["cards"])), tuple(map(str, body["problems"])))


def _card(record: Mapping[str, Any]) -> Card:
    fields = {name: value for name, value in record.items() if name != "detail"}
    return CARD_MODELS[record["kind"]].model_validate({**record["detail"], **fields})
