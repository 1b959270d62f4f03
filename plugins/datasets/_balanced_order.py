"""The fixed order of test images: a keyed shuffle that alternates between the classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bench.plugin import example_key


def balanced_order(labels: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.int64]:
    """A permutation [n] of the examples: the first of each class, the second of each class, ...

    `name` alone determines which image is a class's first and in which order the classes come. Any
    beginning of the list has equal numbers of each class, up to one, while every class has images
    left.
    """
    count = len(labels)
    example = torch.arange(count)
    key = example_key(0, name, example, torch.zeros_like(example)).numpy()
    by_class = np.lexsort((key, labels))
    sizes = np.bincount(labels)
    turn = np.empty(count, dtype=np.int64)
    turn[by_class] = np.concatenate([np.arange(size) for size in sizes])
    return np.lexsort((key, turn)).astype(np.int64)
