"""Galleries: clean images, adversarial examples and their differences, from stored images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.core.cells import CellState
from bench.core.errors import BenchError
from bench.core.outcomes import KeptImage
from bench.results.example_results import LeaderboardResults
from bench.results.figures import GalleryPicture
from bench.store import Store

MAX_SHOWN_ATTACKS = 4
WRONG_COLOR, RIGHT_COLOR = "#b30000", "#1a1a1a"
"""Of a caption whose class is wrong, or right."""

_Pixels = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Gallery:
    """The pictures of a gallery by row, and the headings of its columns."""

    rows: tuple[tuple[GalleryPicture | None, ...], ...]
    heads: tuple[str, ...]
    magnification: float
    """By what the differences are multiplied; grey stands for no difference."""


def load_gallery(
    store: Store, results: LeaderboardResults, defense: str, attacks: Sequence[str], count: int
) -> Gallery:
    """The first stored examples of a defense under attacks, those that were broken first.

    Args:
        store: the database.
        results: of one leaderboard.
        defense: a defense.
        attacks: attacks; empty: the strongest ones whose images are stored.
        count: the number of examples.

    Returns:
        A row for each example: the clean image, then for each attack its image and the difference.

    Raises:
        BenchError: the defense or an attack is unknown here, or no image of it was stored.
    """
    if defense not in results.defenses:
        known = ", ".join(results.defenses)
        raise BenchError(f"there is no defense {defense!r} here; there are {known}.")
    stored = _stored_images(store, results, defense)
    names = list(attacks) or _strongest(results, defense, stored)
    missing = [name for name in names if name not in stored]
    if missing or not names:
        raise BenchError(
            f"no image of {', '.join(missing) or 'any attack'} against {defense} is stored; there "
            f"are images of {', '.join(stored) or 'none'}. `bench run` stores some of each cell, "
            "unless --keep-images is none."
        )
    by_item = {name: {image.item: image for image in stored[name]} for name in names}
    items = _chosen_items(by_item, count)
    classes = store.examples(results.defenses[defense].examples).classes
    largest = max(
        float(np.abs(_difference(found[item])).max())
        for found in by_item.values()
        for item in items
        if item in found
    )
    scale = 0.5 / largest if largest else 1.0
    rows = tuple(_row(item, by_item, classes, scale) for item in items)
    heads = ("clean", *(head for name in names for head in (name, f"difference x{scale:.1f}")))
    return Gallery(rows, heads, scale)


def _stored_images(
    store: Store, results: LeaderboardResults, defense: str
) -> dict[str, list[KeptImage]]:
    """By attack the images of its first finished cell, where some are stored."""
    found: dict[str, list[KeptImage]] = {}
    for (name, attack), cells in results.cells.items():
        done = [row.key for row in cells if row.state == CellState.DONE]
        if name == defense and done and (images := store.images(done[0])):
            found[attack] = images
    return found


def _strongest(
    results: LeaderboardResults, defense: str, stored: Mapping[str, object]
) -> list[str]:
    result = results.defenses[defense]
    left = {name: int(result.robust([name]).sum()) for name in result.attacks if name in stored}
    return sorted(left, key=lambda name: (left[name], name))[:MAX_SHOWN_ATTACKS]


def _chosen_items(by_item: Mapping[str, Mapping[int, KeptImage]], count: int) -> list[int]:
    """Examples that are right when clean, those that most attacks broke first, then by number."""
    broken: dict[int, int] = {}
    for found in by_item.values():
        for item, image in found.items():
            right = image.clean_label == image.true_label
            wrong = right and image.label != image.true_label
            broken[item] = broken.get(item, -1 + right) + wrong
    order = sorted(broken, key=lambda item: (-broken[item], item))[:count]
    return sorted(order)


def _row(
    item: int,
    by_item: Mapping[str, Mapping[int, KeptImage]],
    classes: Sequence[str],
    scale: float,
) -> tuple[GalleryPicture | None, ...]:
    images = [found.get(item) for found in by_item.values()]
    first = next(image for image in images if image is not None)
    said = (first.clean_label, first.clean_confidence, first.true_label)
    pictures: list[GalleryPicture | None] = [
        GalleryPicture(_shown(first.original / 255), *_caption(said, classes))
    ]
    for image in images:
        if image is None:
            pictures += [None, None]
            continue
        said = (image.label, image.confidence, image.true_label)
        change = _difference(image)
        pictures.append(GalleryPicture(_shown(image.adversarial), *_caption(said, classes)))
        size = f"largest {np.abs(change).max():.3f}"
        pictures.append(GalleryPicture(_shown(0.5 + scale * change), size, RIGHT_COLOR))
    return tuple(pictures)


def _difference(image: KeptImage) -> _Pixels:
    change: _Pixels = image.adversarial.astype(np.float64) - image.original / 255
    return change


def _shown(pixels: _Pixels) -> _Pixels:
    """[C, H, W] as matplotlib draws it; channels other than one or three are averaged."""
    inside = np.clip(pixels, 0, 1)
    return inside.transpose(1, 2, 0) if len(inside) == 3 else inside.mean(0)


def _caption(said: tuple[int, float, int], classes: Sequence[str]) -> tuple[str, str]:
    """The predicted class with its confidence, and the colour of the text."""
    label, confidence, truth = said
    name = classes[label] if 0 <= label < len(classes) else "no answer"
    color = RIGHT_COLOR if label == truth else WRONG_COLOR
    return f"{name} ({confidence:.0%})", color
