"""Training recipes: validation and digest."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from bench.core.errors import BenchError, PluginError
from bench.core.hashing import digest
from bench.data import datasets
from bench.plugin import Attack, Dataset, Defense, FreeTraining, InnerAttack, Recipe, Traits
from bench.registry.cards import attack_digest
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.threats.fingerprint import parameters_of
from bench.threats.threat_model import describe_set

TRAINING_VERSION = 2
"""Version of the loop in train.py. A change that may move a weight moves this number."""


DIGESTED_FIELDS = (
    "epochs",
    "batch",
    "rate",
    "weight_decay",
    "optimiser",
    "schedule",
    "seed",
    "options",
)
"""The fields of a recipe that are values; its model and loss are in the plugin's source."""


RECIPE_CHOICES = {
    "optimiser": ("adam", "sgd"),
    "schedule": ("constant", "cosine", "cyclic", "steps"),
}
"""What a recipe may ask for."""


def checked_recipe(defense: Defense) -> Recipe:
    """The recipe, its words checked; BenchError where there is none."""
    recipe = defense.recipe
    if recipe is None:
        raise BenchError(f"{defense.name} declares no recipe, so there is nothing to train.")
    for kind, known in RECIPE_CHOICES.items():
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
    if isinstance(recipe.inner, FreeTraining) and recipe.inner.replays < 1:
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
    recipe = checked_recipe(offer.value)
    taught_by = recipe.teacher and recipe_digest(
        registry, recipe.teacher, dataset, below=(*below, name)
    )
    numbers = {field: getattr(recipe, field) for field in DIGESTED_FIELDS}
    halves = {"test": dataset.digest, "train": datasets.training_digest(dataset)}
    about = {"name": dataset.name, "shape": list(dataset.shape), "digests": halves}
    return digest(
        {
            "training": TRAINING_VERSION,
            "defense": name,
            "source": offer.source,
            "recipe": parameters_of(SimpleNamespace(name=f"the recipe of {name}", **numbers)),
            "inner": describe_inner_attack(registry, recipe.inner),
            "transfer": describe_inner_attack(registry, recipe.transfer),
            "watch": describe_inner_attack(registry, recipe.watch),
            "teacher": taught_by,
            "dataset": {**about, "classes": len(dataset.classes)},
        }
    )


def describe_inner_attack(
    registry: Registry, inner: InnerAttack | FreeTraining | None
) -> dict[str, Any] | None:
    """An attack inside training as JSON values."""
    if inner is None:
        return None
    if isinstance(inner, FreeTraining):
        return {"replays": inner.replays, "rate": inner.rate, "set": describe_set(inner.ball)}
    offer = inner_attack(registry, inner)
    return {
        "name": inner.attack,
        "attack": attack_digest(offer),
        "steps": offer.value.steps,
        "set": describe_set(inner.ball),
    }


def inner_attack(registry: Registry, inner: InnerAttack) -> Registration[Attack]:
    """The attack of that name with the recipe's options in place of its own fields."""
    offer: Registration[Any] = registry.find("attack", inner.attack)
    if Traits.is_external(offer.value):
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
