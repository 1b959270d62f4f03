"""Points of parametric perturbation sets in words: the angle, shift or place behind an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Point = npt.NDArray[np.float32]

LISTED_VALUES = 6
"""A point of at most so many values is listed whole."""


def point_text(perturbation: Mapping[str, Any], point: Point) -> str:
    """A point of a perturbation set in words; `perturbation` is the set of a threat card.

    >>> rotation = {"name": "rotation-translation", "parameters": {"degrees": 30.0, "pixels": 1.0}}
    >>> point_text(rotation, np.float32([-0.5, 0.25, 1.0]))
    'rotated by -15.0 degrees, moved 0.25 pixels to the right and 1.00 down'
    """
    known = perturbation.get("parameters", {})
    values = point.astype(np.float64).ravel()
    if perturbation.get("name") == "rotation-translation":
        angle = values[0] * float(known["degrees"])
        right, down = values[1:] * float(known["pixels"])
        return (
            f"rotated by {angle:.1f} degrees, moved {right:.2f} pixels to the right and"
            f" {down:.2f} down"
        )
    shape = " x ".join(map(str, point.shape))
    if perturbation.get("name") == "patch":
        top, left = known["top"], known["left"]
        return f"a patch of {shape} values from row {top} and column {left} on, counted from 0"
    if perturbation.get("name") == "random-patch":
        return f"a patch of {shape} values, whose place is drawn for each image"
    if perturbation.get("name") == "masked-pattern":
        return (
            f"a print of {shape} values on the region {known['region']}, in a rectangle of"
            f" {known['height']:.0%} of the height and {known['width']:.0%} of the width,"
            f" {known['top']:.0%} from the top and {known['left']:.0%} from the left"
        )
    if values.size <= LISTED_VALUES:
        return f"point ({', '.join(f'{value:.3g}' for value in values)})"
    return f"point of {shape} values, the largest {np.abs(values).max():.3g}"
