"""Weights by digest: the only way they reach a defense, and what a built defense is named by."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bench import data
from bench.course import seeded
from bench.plugin import Dataset, Defense, Shelf
from bench.recipe import Stock, recipe_digest, recipe_of
from bench.records import BenchError, PluginError, UnfitError, digest
from bench.registry import Offer, Registry
from bench.target import Unguarded, freeze
from bench.train import Tell, train


class NeedsTraining(BenchError):  # noqa: N818 - it is a need, and the runner meets it
    """A defense whose weights nobody has trained yet."""

    def __init__(self, recipe: str, name: str, dataset: str) -> None:
        super().__init__(
            f"{name} has no weights for {dataset} yet; `bench train {name}` makes them."
        )
        self.recipe, self.name, self.dataset = recipe, name, dataset


class DefenseShelf:
    """The shelf of one defense on one data set: builds it, and knows its digest then."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        dataset: Dataset,
        folder: Path | None = None,
        *,
        below: tuple[str, ...] = (),
    ) -> None:
        """`folder` holds `weights/` (None: the cache folder); `below`: who builds on it."""
        self.offer: Offer[Defense] = registry.find("defense", name)
        self.registry, self.name, self.dataset, self.folder = registry, name, dataset, folder
        self.shape, self.classes = dataset.shape, len(dataset.classes)
        self.chain = (*below, name)
        self._parts: dict[str, str] = {}
        """Weights files and other defenses that went into it: name -> digest."""
        self._roles: set[str] = set()
        if name in below:
            raise PluginError(f"{' builds on '.join(self.chain)}: no defense can be first.")
        if dataset.name not in self.defense.datasets:
            raise BenchError(
                f"{name} is no defense for {dataset.name}; it declares "
                f"{', '.join(self.defense.datasets) or 'no data set'}."
            )

    @property
    def defense(self) -> Defense:
        """The record."""
        return self.offer.value

    def build(self) -> nn.Module:
        """The defense in eval mode, no parameter asking for a gradient.

        NeedsTraining where weights are missing, its own or those of a defense below it.
        """
        return self._made("build", self.defense.build)

    def stand_in(self) -> nn.Module | None:
        """What an attacker differentiates through instead, where the author declares one."""
        make = self.defense.stand_in
        return self._made("stand-in", make) if make else None

    def complete(self) -> None:
        """Build once whatever was not built yet, so that every weights file is known."""
        if "build" not in self._roles:
            self.build()
        if "stand-in" not in self._roles:
            self.stand_in()

    @property
    def digest(self) -> str:
        """Of source, weights, stand-in and the defenses it builds on; builds where it must."""
        self.complete()
        randomness = self.defense.randomness
        return digest(
            {
                "name": self.name,
                "source": self.offer.source,
                "draws": randomness.draws if randomness else None,
                "parts": self._parts,
            }
        )

    def trained(self, module: nn.Module) -> nn.Module:
        """The module, filled with the weights of this defense's recipe."""
        return fill(module, *self.trained_content())

    def trained_content(self) -> tuple[bytes, Path]:
        """The weights file of this defense's recipe, from now on a part of it, and its path."""
        recipe_of(self.defense)
        recipe = recipe_digest(self.registry, self.name, self.dataset)
        stock = Stock(self.folder or data.cache(), recipe)
        content = stock.content()
        if content is None:
            self.teacher()  # one that has no weights yet is trained first
            raise NeedsTraining(recipe, self.name, self.dataset.name)
        return self._noted("trained", content), stock.weights

    def teacher(self) -> nn.Module | None:
        """The defense that the recipe learns from, built, without its detector; None without."""
        name = recipe_of(self.defense).teacher
        if not name:
            return None
        shelf = DefenseShelf(self.registry, name, self.dataset, self.folder, below=self.chain)
        module = shelf.build()
        return module if shelf.defense.rejects is None else Unguarded(module)

    def filled(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module, filled from a safetensors file of that plain name.

        It is looked for beside the plugin, then in the data folder, then in its `weights`.
        UnfitError where it has another `sha256` than the one given.
        """
        return fill(module, *self.file_content(file, sha256))

    def file_content(self, file: str, sha256: str = "") -> tuple[bytes, Path]:
        """What `filled` fills from, from now on a part of this defense, and its path."""
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise PluginError(
                f"{self.name} asked for the weights {file!r}; name a .safetensors file, no path."
            )
        places = [*self._beside(), data.folder(), data.folder() / "weights"]
        for place in places:
            if (place / file).is_file():
                return self._noted(file, self._genuine(place / file, sha256)), place / file
        looked = ", ".join(str(place) for place in places)
        raise UnfitError(
            f"{self.name} needs the weights {file}, which is in none of {looked}; put it into one, "
            "or set BENCH_DATA to a folder that has it."
        )

    def built(self, name: str) -> nn.Module:
        """Another registered defense, built; its digest becomes part of this one's."""
        other = DefenseShelf(self.registry, name, self.dataset, self.folder, below=self.chain)
        module = other.build()
        self._parts[f"defense {name}"] = other.digest
        return module

    def _beside(self) -> list[Path]:
        if self.offer.folder is not None:
            return [self.offer.folder]
        source = getattr(sys.modules.get(self.offer.module), "__file__", None)
        return [Path(source).parent] if source else []

    def _genuine(self, path: Path, sha256: str) -> bytes:
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 not in ("", found):
            raise UnfitError(
                f"{path} is not the weights file that {self.name} means: its SHA-256 begins with "
                f"{found[:12]}, not {sha256[:12]}; put the right one there, or delete it."
            )
        return content

    def _noted(self, name: str, content: bytes) -> bytes:
        self._parts[f"weights {name}"] = hashlib.sha256(content).hexdigest()
        return content

    def _made(self, role: str, make: Callable[[Shelf], nn.Module]) -> nn.Module:
        # Whatever a build draws (a random projection, say) is the same in every process.
        with seeded(f"build {self.name}", torch.device("cpu")):
            module = make(self)
        if not isinstance(module, nn.Module):
            raise PluginError(
                f"{self.name} built {type(module).__name__}; a torch.nn.Module was expected."
            )
        self._roles.add(role)
        return freeze(module)


def fill(module: nn.Module, content: bytes, path: Path | str) -> nn.Module:
    """The module with the weights of a safetensors file; BenchError names what does not fit."""
    try:
        weights = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise BenchError(
            f"{path} is no safetensors file ({error}); write it with safetensors.torch.save_file."
        ) from error
    wanted = module.state_dict()
    for key in sorted(wanted.keys() | weights.keys()):
        wrong = misfit(wanted.get(key), weights.get(key))
        if wrong:
            raise BenchError(f"{path}: {key!r} {wrong}.")
    module.load_state_dict(weights)
    return module


def misfit(wanted: Tensor | None, came: Tensor | None) -> str:
    """Why one tensor cannot take the other's place; empty when it can."""
    if came is None:
        return "is missing, and the module needs it"
    if wanted is None:
        return "is in the file, and the module has no place for it"
    if wanted.shape != came.shape or wanted.dtype != came.dtype:
        return (
            f"is {came.dtype} {list(came.shape)} in the file, the module expects {wanted.dtype} "
            f"{list(wanted.shape)}"
        )
    if came.is_floating_point() and not bool(came.isfinite().all()):
        return "holds values that are not finite"
    return ""


def learn(
    registry: Registry,
    name: str,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: Tell | None = None,
    beat: Callable[[], None] | None = None,
) -> str:
    """`train` with the recipe's teacher built; what that lacks is trained first, deepest first."""
    shelf = DefenseShelf(registry, name, dataset, folder)
    while True:
        try:
            teacher = shelf.teacher()
        except NeedsTraining as need:
            learn(
                registry, need.name, dataset,
                folder=folder, device=device, mixed=mixed, progress=progress, beat=beat,
            )  # fmt: skip
        else:
            return train(
                registry, name, dataset, teacher=teacher,
                folder=folder, device=device, mixed=mixed, progress=progress, beat=beat,
            )  # fmt: skip


def prepared(
    registry: Registry,
    name: str,
    dataset: Dataset,
    folder: Path | None = None,
    *,
    device: torch.device | str = "cpu",
    mixed: bool = False,
    progress: Callable[[str], Tell] | None = None,
) -> DefenseShelf:
    """A shelf with its digest known: trains whatever the build asks for, deepest first.

    `progress` gets the name of what is trained and gives the function that is told of each epoch.
    """
    while True:
        shelf = DefenseShelf(registry, name, dataset, folder)
        try:
            shelf.complete()
        except NeedsTraining as need:
            tell = progress(need.name) if progress else None
            learn(
                registry, need.name, dataset,
                folder=folder, device=device, mixed=mixed, progress=tell,
            )  # fmt: skip
        else:
            return shelf
