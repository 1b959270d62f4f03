"""Data sets of two and of a hundred classes, and threat models on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.plugin import Dataset, Images, Split, ThreatModel
from plugins.datasets import digits as digits_plugin
from plugins.threats import digits as digits_threats

HUNDRED_TRAIN, HUNDRED_TEST = 20, 5
"""Images of each of the hundred classes."""


def read_two(folder: Path | None) -> Images:
    """The digits, labelled by whether they are below five."""
    made = digits_plugin.read(folder)
    assert made.train is not None
    train, test = (
        Split(h.images, (h.labels >= 5).astype(np.int64)) for h in (made.train, made.test)
    )
    return Images(train, test, made.index)


def read_hundred(folder: Path | None) -> Images:
    """Images near a hundred random patterns of 4 x 4 blocks."""
    random = np.random.default_rng(5)
    patterns = random.choice([40, 215], size=(100, 1, 4, 4)).repeat(2, 2).repeat(2, 3)
    halves = [_near(patterns, count, random) for count in (HUNDRED_TRAIN, HUNDRED_TEST)]
    return Images(halves[0], halves[1], np.arange(100 * HUNDRED_TEST))


def _near(patterns: npt.NDArray[np.int64], count: int, random: np.random.Generator) -> Split:
    labels = np.tile(np.arange(100), count)
    noise = random.normal(0, 25, (len(labels), *patterns.shape[1:]))
    images = np.clip(np.rint(patterns[labels] + noise), 0, 255)
    return Split(images.astype(np.uint8), labels.astype(np.int64))


DATASETS = (
    Dataset("planted-two", ("below", "above"), (1, 8, 8), read_two, 500, summary="Two classes."),
    Dataset(
        "planted-hundred", tuple(map(str, range(100))), (1, 8, 8), read_hundred,
        100 * HUNDRED_TEST, summary="A hundred classes.",
    ),
)  # fmt: skip


def threat_models() -> Iterator[ThreatModel]:
    """The rules of digits-linf on each data set."""
    linf = next(iter(digits_threats.bench_threat_models()))
    for dataset in DATASETS:
        yield replace(linf, name=f"{dataset.name}-linf", dataset=dataset.name, order=900)
