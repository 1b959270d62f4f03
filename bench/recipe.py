"""What makes two trainings the same: a recipe checked, its digest, and where its files lie."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import data
from bench.identity import resolved
from bench.plugin import Attack, Dataset, Defense, Free, Inner, Recipe, Traits
from bench.records import BenchError, PluginError, digest
from bench.registry import Offer, Registry, attack_digest
from bench.threat import describe

TRAINING = 2
"""Version of the loop in train.py. A change that may move a weight moves this number."""

NUMBERS = ("epochs", "batch", "rate", "weight_decay", "optimiser", "schedule", "seed", "options")
"""The fields of a recipe that are values; its model and loss are in the plugin's source."""

WORDS = {"optimiser": ("adam", "sgd"), "schedule": ("constant", "cosine", "cyclic", "steps")}
"""What a recipe may ask for."""


@dataclass(frozen=True)
class Stock:
    """Where the files of one recipe lie."""

    folder: Path
    recipe: str
    """Recipe digest."""

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.folder / "weights" / f"{self.recipe}.safetensors"

    @property
    def record(self) -> Path:
        """Their SHA-256, and how they came about. Written last: with it the recipe is done."""
        return self.weights.with_suffix(".json")

    @property
    def checkpoint(self) -> Path:
        """The state after the last whole epoch of an unfinished training."""
        return self.folder / "training" / f"{self.recipe}.pt"

    @property
    def mixed(self) -> bool:
        """Whether the weights were trained in bfloat16, as their record says."""
        return bool(json.loads(self.record.read_bytes())["mixed"])

    def content(self) -> bytes | None:
        """The weights file, if this recipe is done; BenchError if it is not what was written."""
        try:
            record = self.record.read_bytes()
            content = self.weights.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest().encode() not in record:
            raise BenchError(
                f"{self.weights} is not the file that training wrote; delete it and train again."
            )
        return content


def recipe_of(defense: Defense) -> Recipe:
    """The recipe, its words checked; BenchError where there is none."""
    recipe = defense.recipe
    if recipe is None:
        raise BenchError(f"{defense.name} declares no recipe, so there is nothing to train.")
    for kind, known in WORDS.items():
        came = getattr(recipe, kind)
        if came not in known:
            names = ", ".join(known)
            raise BenchError(f"{defense.name} asks for the {kind} {came!r}; known: {names}.")
    least = 0 if recipe.fit is not None else 1
    if recipe.epochs < least or recipe.batch < 1:
        raise BenchError(
            f"{defense.name} asks for {recipe.epochs} epochs of batches of {recipe.batch}; at "
            "least 1 of each is needed."
        )
    if recipe.epochs and recipe.loss is None:
        raise BenchError(
            f"{defense.name} asks for {recipe.epochs} epochs and has no loss to learn."
        )
    if recipe.transfer is not None and not recipe.teacher:
        raise BenchError(
            f"{defense.name} plays {recipe.transfer.attack} on its teacher and names no teacher."
        )
    if isinstance(recipe.inner, Free) and recipe.inner.replays < 1:
        raise BenchError(
            f"{defense.name} replays a batch {recipe.inner.replays} times; at least 1."
        )
    return recipe


def recipe_digest(
    registry: Registry, name: str, dataset: Dataset, *, below: tuple[str, ...] = ()
) -> str:
    """What makes two trainings the same: source, every number, attacks, teacher, data, loop.

    `below`: who learns from this one.
    """
    if name in below:
        raise PluginError(f"{' learns from '.join((*below, name))}: no defense can be first.")
    offer = registry.find("defense", name)
    recipe = recipe_of(offer.value)
    taught_by = recipe.teacher and recipe_digest(
        registry, recipe.teacher, dataset, below=(*below, name)
    )
    numbers = {field: getattr(recipe, field) for field in NUMBERS}
    halves = {"test": dataset.digest, "train": data.training_digest(dataset)}
    about = {"name": dataset.name, "shape": list(dataset.shape), "digests": halves}
    return digest(
        {
            "training": TRAINING,
            "defense": name,
            "source": offer.source,
            "recipe": resolved(SimpleNamespace(name=f"the recipe of {name}", **numbers)),
            "inner": inner_rules(registry, recipe.inner),
            "transfer": inner_rules(registry, recipe.transfer),
            "watch": inner_rules(registry, recipe.watch),
            "teacher": taught_by,
            "dataset": {**about, "classes": len(dataset.classes)},
        }
    )


def inner_rules(registry: Registry, inner: Inner | Free | None) -> dict[str, Any] | None:
    """An attack inside training as JSON values."""
    if inner is None:
        return None
    if isinstance(inner, Free):
        return {"replays": inner.replays, "rate": inner.rate, "set": describe(inner.ball)}
    offer = inner_attack(registry, inner)
    return {
        "name": inner.attack,
        "attack": attack_digest(offer),
        "steps": offer.value.steps,
        "set": describe(inner.ball),
    }


def inner_attack(registry: Registry, inner: Inner) -> Offer[Attack]:
    """The attack of that name with the recipe's options in place of its own fields."""
    offer: Offer[Any] = registry.find("attack", inner.attack)
    if Traits.whole(offer.value):
        raise BenchError(
            f"the attack {inner.attack} has a run of its own; inside training one with start and "
            "step is needed."
        )
    try:
        changed = dataclasses.replace(offer.value, **inner.options) if inner.options else None
    except TypeError as error:
        raise BenchError(
            f"the attack {inner.attack} cannot take the options {dict(inner.options)}: {error}."
        ) from error
    return dataclasses.replace(offer, value=changed or offer.value)
