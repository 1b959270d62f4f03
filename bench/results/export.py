"""Exports: outcomes as CSV, adversarial images as safetensors; torch-free."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.core.cells import CLEAN, CellState
from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import Verdict
from bench.results.example_results import LeaderboardResults, load_results
from bench.results.leaderboards import Leaderboard, find_leaderboard
from bench.store import CellRow, ExamplesRow, Store

COLUMNS = (
    "defense", "attack", "seed", "example", "target", "true_label", "clean_right",
    "label", "verdict", "distance", "forwards", "gradients", "step", "eight_bit", "fragile",
)  # fmt: skip
SQLITE_HEADER = b"SQLite format 3\0"
"""The first bytes of a SQLite database."""


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, and whether it is complete."""

    path: Path
    n: int
    """Number of rows or images."""
    complete: bool
    sentence: str
    """What was exported, and how to get the rest."""


def write_outcomes(
    store: Store,
    threat: str | None,
    path: Path,
    mode: str = "full",
    order: str | None = None,
) -> ExportedFile:
    """Write one row for each (defense, attack, example) of a leaderboard's finished cells.

    An example is robust where `clean_right` is 1 and no row of it is `broken`. Where the goal is
    every wrong class in turn there is one row for each (example, target); in rank mode there is
    none where an earlier attack broke the example. The file is written whole or not at all.
    Raises BenchError where there is no such leaderboard, and UnavailableError where the file cannot
    be written.
    """
    results = load_results(store, find_leaderboard(store, threat, mode, order))
    examples = store.examples(results.leaderboard.examples)
    rows, open_cells = 0, 0
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cells in (results.cells[pair] for pair in sorted(results.cells)):
            for cell in cells:
                lines = list(_lines(store, results, examples, cell))
                writer.writerows(lines)
                rows += len(lines)
                open_cells += cell.state in (CellState.MISSING, CellState.RUNNING)
    return ExportedFile(
        path, rows, not open_cells, _about_rows(results.leaderboard, rows, open_cells)
    )


def _lines(
    store: Store, results: LeaderboardResults, examples: ExamplesRow, cell: CellRow
) -> Iterator[tuple[object, ...]]:
    if cell.state != CellState.DONE or cell.cell.attack == CLEAN:
        return
    result = results.defenses[cell.cell.defense]
    targets = len(examples.classes) - 1 if results.leaderboard.has_all_targets else 1
    names = _no_formula(cell.cell.defense), _no_formula(cell.cell.attack), cell.cell.seed
    found = store.outcomes(cell.key)
    for row, item in enumerate(found.item.tolist()):
        example, target = divmod(item, targets)
        yield (
            *names,
            example,
            target if targets > 1 else "",
            int(examples.labels[example]),
            int(result.clean[example]) if result.has_clean_pass else "",
            int(found.label[row]),
            Verdict(int(found.verdict[row])).name.lower(),
            float(found.distance[row]),
            int(found.forwards[row]),
            int(found.gradients[row]),
            int(found.step[row]),
            int(found.eight_bit[row]),
            int(found.fragile[row]),
        )


def _no_formula(name: str) -> str:
    """The name, quoted where a spreadsheet would read it as a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@", "\t", "\r"} else name


def _about_rows(leaderboard: Leaderboard, rows: int, missing: int) -> str:
    if not missing:
        return f"{rows} outcomes: every planned cell of {leaderboard.name} is done."
    cells = f"{missing} planned cells of {leaderboard.name}"
    return f"{rows} outcomes; incomplete: {cells} are not done, `bench run` finishes them."


def write_images(
    store: Store,
    threat: str | None,
    defense: str,
    attack: str,
    path: Path,
    mode: str = "full",
    order: str | None = None,
) -> ExportedFile:
    """Write `adv` float32 [n, C, H, W], exact or else the sample, and their `index` int64 [n].

    Raises BenchError where no image was recorded, UnavailableError where the file is not writable.
    """
    from safetensors.numpy import save_file

    leaderboard = find_leaderboard(store, threat, mode, order)
    cell = _cell(load_results(store, leaderboard), defense, attack)
    index, adv = _pixels(store, cell)
    about = {"threat": leaderboard.name, "defense": defense, "attack": attack, "cell": cell.key}
    about |= {"order": leaderboard.example_order, "root": store.root()}
    with written_whole(path) as partial:
        save_file({"adv": adv, "index": index}, partial, metadata=about)
    whole = len(index) == cell.cell.items
    return ExportedFile(path, len(index), whole, _about_images(cell, len(index)))


def _cell(results: LeaderboardResults, defense: str, attack: str) -> CellRow:
    cells = results.cells.get((defense, attack), ())
    started = [cell for cell in cells if cell.items_done]
    if not started:
        known = sorted(f"{d}/{a}" for (d, a), rows in results.cells.items() if rows and a != CLEAN)
        raise BenchError(
            f"{attack!r} was not evaluated against {defense!r} on {results.leaderboard.name};"
            f" cells there: {', '.join(known)}."
        )
    return min(started, key=lambda cell: (cell.state != CellState.DONE, cell.cell.seed))


def _pixels(store: Store, cell: CellRow) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    exact = store.exact_images(cell.key)
    if exact is not None:
        items, adv = exact
        return items.astype(np.int64), np.ascontiguousarray(adv)
    kept = store.images(cell.key)
    if not kept:
        raise BenchError(
            f"no image of {cell.cell.attack} against {cell.cell.defense} was kept; evaluate it into"
            " a new database with `bench run --keep-images all`."
        )
    return np.array([image.item for image in kept]), np.stack([k.adversarial for k in kept])


def _about_images(cell: CellRow, n: int) -> str:
    name = f"{cell.cell.attack} against {cell.cell.defense}"
    if n == cell.cell.items:
        return f"{n} images: every item of {name}."
    part = f"{n} of {cell.cell.items} images of {name}: incomplete"
    return f"{part}; only `bench run --keep-images all` keeps every one."


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside the path, renamed when all is written, removed on failure."""
    try:
        partial = _temporary_file(path)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be written ({error.strerror or error}): name a file in a folder that"
            " exists and has room."
        ) from error


def _temporary_file(path: Path) -> Path:
    """A new temporary file; raises UnavailableError where the path is a database, else OSError."""
    if path.exists() and not path.is_file():
        raise OSError("it exists and is not a file")
    if path.is_file() and _first_bytes(path) == SQLITE_HEADER:
        raise UnavailableError(
            f"{path} is a database, which an export would erase: name another file."
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.touch()
    return partial


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(SQLITE_HEADER))
