"""Which libraries are installed beside the project, and in which version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec

import torch
from torch import Tensor

from bench.plugin import ExternalAttack, ExternalProblem, MissingLibrary, per_image


def version(distribution: str) -> str:
    """Its version; empty where it is not installed. The library itself is not imported."""
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return ""


def offered(
    module: str, distribution: str, attacks: Iterable[ExternalAttack]
) -> Iterator[ExternalAttack | MissingLibrary]:
    """These attacks where the library is installed; elsewhere what to install for each."""
    here = version(distribution) != "" and find_spec(module) is not None
    for attack in attacks:
        yield attack if here else MissingLibrary(attack.name, distribution)


def brought(problem: ExternalProblem, images: Tensor, minimises: bool) -> Tensor:
    """What a library found; brought back into the set unless it looks for the nearest anywhere.

    Libraries clip by another rounding, or not at all, and some divide by a slope of zero: the
    referee would refuse such an image.
    """
    finite = images.flatten(1).isfinite().all(1)
    images = torch.where(per_image(finite), images, problem.x)
    return images if minimises else problem.ball.project(images, problem.x)
