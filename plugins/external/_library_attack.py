"""Base of the adapters for attacks of other libraries: version, registration, image checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.plugin import Access, ExternalAttack, ExternalProblem, MissingLibrary, per_row


@dataclass(frozen=True)
class LibraryAttack:
    """One attack of another library with its options; a subclass adds `generate`."""

    name: str
    attack: str
    """Name of the class or function in the library's attack module."""
    norms: tuple[str, ...]
    cite: str
    summary: str
    needs: Access = Access.GRADIENTS
    minimises: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    modules: ClassVar[tuple[str, ...]]
    """Modules of the library to import; the attack is in the first one."""

    @property
    def goals(self) -> tuple[str, ...]:
        """The goals it can serve: the nearest adversarial example only where it minimises."""
        return ("untargeted", "nearest") if self.minimises else ("untargeted",)

    def prepare(self) -> None:
        """Import the library before the first run."""
        for module in self.modules:
            import_module(module)

    @property
    def implementation(self) -> Any:
        """The library's class or function."""
        return getattr(import_module(self.modules[0]), self.attack)

    def run(self, problem: ExternalProblem) -> Tensor:
        """The library's images [n, C, H, W], projected onto the perturbation set.

        The images of an attack that minimises are not projected.
        """
        return valid_images(problem, self.generate(problem), project=not self.minimises)

    def generate(self, problem: ExternalProblem) -> Tensor:
        """The library's own images [n, C, H, W].

        Raises NotImplementedError where a subclass does not define it.
        """
        raise NotImplementedError


def version(distribution: str) -> str:
    """The installed version; empty where it is not installed. The library is not imported."""
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return ""


def registered(
    module: str, distribution: str, attacks: Iterable[ExternalAttack]
) -> Iterator[ExternalAttack | MissingLibrary]:
    """The attacks where their library is installed; elsewhere a `MissingLibrary` for each."""
    here = version(distribution) != "" and find_spec(module) is not None
    for attack in attacks:
        yield attack if here else MissingLibrary(attack.name, distribution)


def valid_images(problem: ExternalProblem, images: Tensor, *, project: bool) -> Tensor:
    """Images [n, C, H, W] of a library that the referee accepts, one by one.

    The clean image replaces an image that is not finite, which some libraries return after dividing
    by a zero gradient. With `project` the others are projected onto the perturbation set, because
    libraries round differently in their clipping, or do not clip.
    """
    finite = images.flatten(1).isfinite().all(1)
    images = torch.where(per_row(finite), images, problem.x)
    return problem.ball.project(images, problem.x) if project else images
