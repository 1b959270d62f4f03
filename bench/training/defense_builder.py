"""Builds a defense with its weights and computes its digest."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.core.hashing import digest
from bench.data import datasets
from bench.engine.answers import ClassifierOnly
from bench.engine.model_access import freeze
from bench.plugin import Dataset, Defense, Loader
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.training.recipes import checked_recipe, recipe_digest
from bench.training.state import seeded
from bench.training.weights_cache import WeightsFiles, load_weights


class NeedsTraining(BenchError):  # noqa: N818 - it is a need, and the runner meets it
    """A defense whose weights nobody has trained yet."""

    def __init__(self, recipe: str, name: str, dataset: str) -> None:
        super().__init__(
            f"{name} has no weights for {dataset} yet; `bench train {name}` makes them."
        )
        self.recipe, self.name, self.dataset = recipe, name, dataset


class DefenseBuilder:
    """The loader of one defense on one data set: builds it, and knows its digest then."""

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
        self.offer: Registration[Defense] = registry.find("defense", name)
        self.registry, self.name, self.dataset, self.folder = registry, name, dataset, folder
        self.shape, self.classes = dataset.shape, len(dataset.classes)
        self.chain = (*below, name)
        self._parts: dict[str, str] = {}
        """Weights files and other defenses that went into it: name -> digest."""
        self._roles: set[str] = set()
        if name in below:
            raise PluginError(f"{' builds on '.join(self.chain)}: no defense can be first.")
        if dataset.name not in self.record.datasets:
            raise BenchError(
                f"{name} is no defense for {dataset.name}; it declares "
                f"{', '.join(self.record.datasets) or 'no data set'}."
            )

    @property
    def record(self) -> Defense:
        """The record."""
        return self.offer.value

    def build(self) -> nn.Module:
        """The defense in eval mode, no parameter asking for a gradient.

        NeedsTraining where weights are missing, its own or those of a defense below it.
        """
        return self._made("build", self.record.build)

    def bpda(self) -> nn.Module | None:
        """What an attacker differentiates through instead, where the author declares one."""
        make = self.record.bpda
        return self._made("stand-in", make) if make else None

    def complete(self) -> None:
        """Build once whatever was not built yet, so that every weights file is known."""
        if "build" not in self._roles:
            self.build()
        if "stand-in" not in self._roles:
            self.bpda()

    @property
    def digest(self) -> str:
        """Of source, weights, stand-in and the defenses it builds on; builds where it must."""
        self.complete()
        randomness = self.record.randomness
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
        return load_weights(module, *self.trained_content())

    def trained_content(self) -> tuple[bytes, Path]:
        """The weights file of this defense's recipe, from now on a part of it, and its path."""
        checked_recipe(self.record)
        recipe = recipe_digest(self.registry, self.name, self.dataset)
        stock = WeightsFiles(self.folder or datasets.cache_folder(), recipe)
        content = stock.content()
        if content is None:
            self.teacher()  # one that has no weights yet is trained first
            raise NeedsTraining(recipe, self.name, self.dataset.name)
        return self._noted("trained", content), stock.weights

    def teacher(self) -> nn.Module | None:
        """The defense that the recipe learns from, built, without its detector; None without."""
        name = checked_recipe(self.record).teacher
        if not name:
            return None
        loader = DefenseBuilder(self.registry, name, self.dataset, self.folder, below=self.chain)
        module = loader.build()
        return module if loader.record.rejects is None else ClassifierOnly(module)

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module, filled from a safetensors file of that plain name.

        It is looked for beside the plugin, then in the data folder, then in its `weights`.
        UnavailableError where it has another `sha256` than the one given.
        """
        return load_weights(module, *self.file_content(file, sha256))

    def file_content(self, file: str, sha256: str = "") -> tuple[bytes, Path]:
        """What `weights` fills from, from now on a part of this defense, and its path."""
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise PluginError(
                f"{self.name} asked for the weights {file!r}; name a .safetensors file, no path."
            )
        places = [*self._beside(), datasets.data_folder(), datasets.data_folder() / "weights"]
        for place in places:
            if (place / file).is_file():
                return self._noted(file, self._genuine(place / file, sha256)), place / file
        looked = ", ".join(str(place) for place in places)
        raise UnavailableError(
            f"{self.name} needs the weights {file}, which is in none of {looked}; put it into one, "
            "or set BENCH_DATA to a folder that has it."
        )

    def defense(self, name: str) -> nn.Module:
        """Another registered defense, built; its digest becomes part of this one's."""
        other = DefenseBuilder(self.registry, name, self.dataset, self.folder, below=self.chain)
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
            raise UnavailableError(
                f"{path} is not the weights file that {self.name} means: its SHA-256 begins with "
                f"{found[:12]}, not {sha256[:12]}; put the right one there, or delete it."
            )
        return content

    def _noted(self, name: str, content: bytes) -> bytes:
        self._parts[f"weights {name}"] = hashlib.sha256(content).hexdigest()
        return content

    def _made(self, role: str, make: Callable[[Loader], nn.Module]) -> nn.Module:
        # Whatever a build draws (a random projection, say) is the same in every process.
        with seeded(f"build {self.name}", torch.device("cpu")):
            module = make(self)
        if not isinstance(module, nn.Module):
            raise PluginError(
                f"{self.name} built {type(module).__name__}; a torch.nn.Module was expected."
            )
        self._roles.add(role)
        return freeze(module)
