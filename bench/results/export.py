"""What leaves the house: outcomes as CSV, adversarial images as safetensors; no torch."""

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
SQLITE = b"SQLite format 3\0"
"""How every such database begins, the open one too."""


@dataclass(frozen=True)
class Exported:
    """What was written, and whether it is everything."""

    path: Path
    n: int
    """Rows or images."""
    complete: bool
    sentence: str
    """For people: how much of what is there, and how to get the rest."""


def outcomes(store: Store, threat: str | None, path: Path, mode: str = "full") -> Exported:
    """Write one row for each (defense, attack, example) of a board's finished cells.

    An example is robust where `clean_right` is 1 and no row of it says `broken`. On boards that aim
    at all classes in turn there is one row for each (example, target); in rank mode there is none
    where the example fell before the attack came. The file appears whole or
    not at all.
    """
    played = load_results(store, find_leaderboard(store, threat, mode))
    examples = store.examples(played.board.examples)
    rows, open_cells = 0, 0
    with _whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cells in (played.cells[pair] for pair in sorted(played.cells)):
            for cell in cells:
                lines = list(_lines(store, played, examples, cell))
                writer.writerows(lines)
                rows += len(lines)
                open_cells += cell.state in (CellState.MISSING, CellState.RUNNING)
    return Exported(path, rows, not open_cells, _about_rows(played.board, rows, open_cells))


def _lines(
    store: Store, played: LeaderboardResults, examples: ExamplesRow, cell: CellRow
) -> Iterator[tuple[object, ...]]:
    if cell.state != CellState.DONE or cell.cell.attack == CLEAN:
        return
    standing = played.standings[cell.cell.defense]
    targets = len(examples.classes) - 1 if played.board.targets else 1
    names = _harmless(cell.cell.defense), _harmless(cell.cell.attack), cell.cell.seed
    found = store.outcomes(cell.key)
    for row, item in enumerate(found.item.tolist()):
        example, target = divmod(item, targets)
        yield (
            *names,
            example,
            target if targets > 1 else "",
            int(examples.labels[example]),
            int(standing.clean[example]) if standing.cleaned else "",
            int(found.label[row]),
            Verdict(int(found.verdict[row])).name.lower(),
            float(found.distance[row]),
            int(found.forwards[row]),
            int(found.gradients[row]),
            int(found.step[row]),
            int(found.eight_bit[row]),
            int(found.fragile[row]),
        )


def _harmless(name: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@", "\t", "\r"} else name


def _about_rows(board: Leaderboard, rows: int, unfinished: int) -> str:
    if not unfinished:
        return f"{rows} outcomes: every planned cell of {board.name} is there."
    return (
        f"{rows} outcomes; incomplete: {unfinished} planned cells of {board.name} are not done,"
        " `bench run` finishes them."
    )


def images(
    store: Store, threat: str | None, defense: str, attack: str, path: Path, mode: str = "full"
) -> Exported:
    """Write `adv` float32 [n, C, H, W] and `index` int64 [n], the item of each image.

    Exact images where they were kept, else the sample for the pages. BenchError where the cell
    was never played or no image of it was kept.
    """
    from safetensors.numpy import save_file

    board = find_leaderboard(store, threat, mode)
    cell = _cell(load_results(store, board), defense, attack)
    index, adv = _pixels(store, cell)
    about = {"threat": board.name, "defense": defense, "attack": attack, "cell": cell.key}
    with _whole(path) as partial:
        save_file({"adv": adv, "index": index}, partial, metadata=about)
    return Exported(
        path, len(index), len(index) == cell.cell.items, _about_images(cell, len(index))
    )


def _cell(played: LeaderboardResults, defense: str, attack: str) -> CellRow:
    cells = played.cells.get((defense, attack), ())
    started = [cell for cell in cells if cell.items_done]
    if not started:
        known = sorted(f"{d}/{a}" for (d, a), rows in played.cells.items() if rows and a != CLEAN)
        raise BenchError(
            f"{attack!r} was not played against {defense!r} on {played.board.name};"
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
    if n == cell.cell.items:
        return f"{n} images: every item of {cell.cell.attack} against {cell.cell.defense}."
    return (
        f"{n} of {cell.cell.items} images of {cell.cell.attack} against {cell.cell.defense}:"
        " incomplete; only `bench run --keep-images all` keeps every one."
    )


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A neighbour to write into, renamed when all is written, removed when something fails."""
    try:
        partial = _beside(path)
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


def _beside(path: Path) -> Path:
    """A new temporary file; UnavailableError where a database lies, OSError elsewhere."""
    if path.exists() and not path.is_file():
        raise OSError("it is there, and no file")
    if path.is_file() and _begins(path) == SQLITE:
        raise UnavailableError(
            f"{path} is a database, which an export would erase: name another file."
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.touch()
    return partial


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(SQLITE))
