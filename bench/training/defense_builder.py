"""Builds a defense with its weights and computes its digest."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.core.batches import FRESH_ROWS, noise_rows
from bench.core.errors import BenchError, PluginError, UnavailableError
from bench.core.hashing import digest
from bench.data import datasets
from bench.engine.answers import ClassifierOnly
from bench.engine.model_access import freeze
from bench.plugin import Dataset, Defense, Loader
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.training.recipes import checked_recipe, recipe_digest
from bench.training.state import seeded_by_name
from bench.training.trained_weights import WeightsSource
from bench.training.weights_cache import load_weights


class NeedsTraining(BenchError):  # noqa: N818 - an expected state: the caller trains, then retries
    """The weights of a defense have not been trained yet."""

    def __init__(self, recipe: str, name: str, dataset: str) -> None:
        super().__init__(
            f"{name} has no weights for {dataset} yet; `bench train {name}` makes them."
        )
        self.recipe, self.name, self.dataset = recipe, name, dataset


class DefenseBuilder:
    """Builds one defense on one data set and computes its digest.

    It is the `Loader` that `Defense.build` and `.bpda` receive, so it records the digest of every
    weights file and every other defense that a build uses.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        dataset: Dataset,
        folder: Path | None = None,
        *,
        below: tuple[str, ...] = (),
        source: WeightsSource | None = None,
    ) -> None:
        """Look the defense up.

        Args:
            registry: where the defense is registered.
            name: the defense.
            dataset: the data set to build it for.
            folder: holds `weights/`; None: the cache folder.
            below: names of the defenses that build on this one, the outermost first.
            source: where trained weights are found; None: in the folder.

        Raises:
            PluginError: where the defense builds on itself.
            BenchError: where it does not declare the data set.
        """
        self.registration: Registration[Defense] = registry.find("defense", name)
        self.registry, self.name, self.dataset = registry, name, dataset
        self.source = source or WeightsSource(folder)
        self.shape, self.classes = dataset.shape, len(dataset.classes)
        self.chain = (*below, name)
        self._digests: dict[str, str] = {}
        """Digest of each weights file and defense that the builds have used, by name."""
        self.recipes: dict[str, str] = {}
        """SHA-256 of the trained weights that the builds have used, by recipe digest."""
        self._built_roles: set[str] = set()
        if name in below:
            raise PluginError(
                f"{' builds on '.join(self.chain)}: a defense cannot build on itself."
            )
        if dataset.name not in self.record.datasets:
            raise BenchError(
                f"{name} is no defense for {dataset.name}; it declares "
                f"{', '.join(self.record.datasets) or 'no data set'}."
            )

    @property
    def record(self) -> Defense:
        """The registered record of the defense."""
        return self.registration.value

    def build(self) -> nn.Module:
        """A new copy of the model, in eval mode, gradients of its parameters switched off.

        Raises NeedsTraining where weights are missing, its own or those of a defense it builds on.
        """
        return self._build_role("build", self.record.build)

    def bpda(self) -> nn.Module | None:
        """The declared BPDA approximation, built like the model; None without one."""
        make = self.record.bpda
        return self._build_role("bpda", make) if make else None

    def complete(self) -> None:
        """Build what has not been built yet, so that the digest of every weights file is known."""
        if "build" not in self._built_roles:
            self.build()
        if "bpda" not in self._built_roles:
            self.bpda()

    @property
    def digest(self) -> str:
        """Digest of source, weights, BPDA, other defenses and how draws are grouped; builds."""
        self.complete()
        randomness = self.record.randomness
        rows = noise_rows(self.dataset.shape)
        # Digests of groups of 64 rows are those from before there were other ones.
        grouped = {"noise_rows": rows} if randomness and rows != FRESH_ROWS else {}
        return digest(
            {
                "name": self.name,
                "source": self.registration.source,
                "draws": randomness.draws if randomness else None,
                "parts": self._digests,
                **grouped,
            }
        )

    def trained(self, module: nn.Module) -> nn.Module:
        """The module with the weights that this defense's recipe has trained."""
        return load_weights(module, *self.trained_content())

    def trained_content(self) -> tuple[bytes, Path]:
        """Content and path of the trained weights; the content becomes part of the digest.

        Raises NeedsTraining where the recipe has not been trained, its teacher first.
        """
        checked_recipe(self.record)
        recipe = recipe_digest(self.registry, self.name, self.dataset)
        found = self.source.find(recipe)
        if found is None:
            self.teacher()  # raises NeedsTraining for an untrained teacher, which is trained first
            raise NeedsTraining(recipe, self.name, self.dataset.name)
        self.recipes[recipe] = hashlib.sha256(found.content).hexdigest()
        return self._add_digest("trained", found.content), found.path

    def teacher(self) -> nn.Module | None:
        """The recipe's teacher, built, without its detector; None where it names none."""
        name = checked_recipe(self.record).teacher
        if not name:
            return None
        builder = self.dependency(name)
        module = builder.build()
        return module if builder.record.rejects is None else ClassifierOnly(module)

    def weights(self, module: nn.Module, file: str, *, sha256: str = "") -> nn.Module:
        """The module with a file's weights, from the plugin's or data folder or its `weights`.

        Raises UnavailableError where it is missing or has another SHA-256 than `sha256`.
        """
        return load_weights(module, *self.file_content(file, sha256))

    def _require_file_name(self, file: str) -> None:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise PluginError(
                f"{self.name} asked for the weights {file!r}; name a .safetensors file, no path."
            )

    def file_content(self, file: str, sha256: str = "") -> tuple[bytes, Path]:
        """Content and path of a weights file; the content becomes part of the digest.

        Raises PluginError for any but a .safetensors name, UnavailableError where no folder has it.
        """
        self._require_file_name(file)
        folder = datasets.data_folder()
        places = [*self._plugin_folders(), folder, folder / "weights"]
        for place in places:
            if (place / file).is_file():
                content = self._verified_content(place / file, sha256)
                return self._add_digest(file, content), place / file
        looked = ", ".join(str(place) for place in places)
        raise UnavailableError(
            f"{self.name} needs the weights {file}, which is in none of {looked}; put it into one, "
            "or set BENCH_DATA to a folder that has it."
        )

    def defense(self, name: str) -> nn.Module:
        """Another registered defense, built; its digest becomes part of this one's."""
        other = self.dependency(name)
        module = other.build()
        self._digests[f"defense {name}"] = other.digest
        self.recipes |= other.recipes
        return module

    def dependency(self, name: str) -> DefenseBuilder:
        """The builder of another defense that this one builds on or learns from."""
        return DefenseBuilder(
            self.registry, name, self.dataset, below=self.chain, source=self.source
        )

    def _plugin_folders(self) -> list[Path]:
        """The folder of the plugin that registered the defense; empty where it has no file."""
        if self.registration.folder is not None:
            return [self.registration.folder]
        source = getattr(sys.modules.get(self.registration.module), "__file__", None)
        return [Path(source).parent] if source else []

    def _verified_content(self, path: Path, sha256: str) -> bytes:
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 not in ("", found):
            raise UnavailableError(
                f"{path} is not the weights file that {self.name} means: its SHA-256 begins with "
                f"{found[:12]}, not {sha256[:12]}; put the right one there, or delete it."
            )
        return content

    def _add_digest(self, name: str, content: bytes) -> bytes:
        self._digests[f"weights {name}"] = hashlib.sha256(content).hexdigest()
        return content

    def _build_role(self, role: str, make: Callable[[Loader], nn.Module]) -> nn.Module:
        module = build_module(self.name, make, self)
        self._built_roles.add(role)
        return module


def build_module(name: str, make: Callable[[Loader], nn.Module], loader: Loader) -> nn.Module:
    """Call `Defense.build` or `.bpda` with seeded generators; the module in eval mode and frozen.

    Raises PluginError where the function returns no nn.Module.
    """
    # A build may draw, for example, a random projection: it is the same in every process.
    with seeded_by_name(f"build {name}", torch.device("cpu")):
        module = make(loader)
    if not isinstance(module, nn.Module):
        raise PluginError(f"{name} built {type(module).__name__}; a torch.nn.Module was expected.")
    return freeze(module)
