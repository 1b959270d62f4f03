"""Training recipes: validation and digest."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from bench.core.errors import BenchError, PluginError
from bench.core.hashing import digest
from bench.data import datasets
from bench.plugin import (
    Attack,
    Dataset,
    Defense,
    FreeTraining,
    InnerAttack,
    Recipe,
    Traits,
    is_shared,
)
from bench.registry.cards import attack_digest
from bench.registry.registration import Registration
from bench.registry.registry import Registry
from bench.threats.fingerprint import parameters_of
from bench.threats.threat_model import describe_set

TRAINING_VERSION = 2
"""Version of the training loop; raised by any change that may alter a trained weight."""

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
"""Recipe fields digested by value; model and loss are covered by the plugin's source digest."""

RECIPE_CHOICES = {
    "optimiser": ("adam", "sgd"),
    "schedule": ("constant", "cosine", "cyclic", "steps"),
}
"""Allowed values of recipe fields."""


def checked_recipe(defense: Defense) -> Recipe:
    """The recipe of a defense, validated; raises BenchError where it is missing or inconsistent."""
    recipe = defense.recipe
    if recipe is None:
        raise BenchError(f"{defense.name} declares no recipe, so there is nothing to train.")
    for kind, known in RECIPE_CHOICES.items():
        value = getattr(recipe, kind)
        if value not in known:
            names = ", ".join(known)
            raise BenchError(f"{defense.name} asks for the {kind} {value!r}; known: {names}.")
    least = 0 if recipe.fit is not None else 1
    if recipe.epochs < least or recipe.batch < 1:
        raise BenchError(
            f"{defense.name} asks for {recipe.epochs} epochs of batches of {recipe.batch}; at "
            "least 1 of each is needed."
        )
    if recipe.epochs and recipe.loss is None:
        raise BenchError(f"{defense.name} asks for {recipe.epochs} epochs and declares no loss.")
    if recipe.transfer is not None and not recipe.teacher:
        raise BenchError(
            f"{defense.name} declares the transfer attack {recipe.transfer.attack} on its teacher "
            "and names no teacher."
        )
    if isinstance(recipe.inner, FreeTraining) and recipe.inner.replays < 1:
        raise BenchError(
            f"{defense.name} replays a batch {recipe.inner.replays} times; at least 1 is needed."
        )
    return recipe


def recipe_digest(
    registry: Registry, name: str, dataset: Dataset, *, below: tuple[str, ...] = ()
) -> str:
    """Digest of all that decides the weights: source, numbers, attacks, teacher, data, loop.

    `below` names the defenses that learn from this one. Raises PluginError where a defense is,
    directly or not, its own teacher.
    """
    if name in below:
        raise PluginError(
            f"{' learns from '.join((*below, name))}: a defense cannot be its own teacher."
        )
    registration = registry.find("defense", name)
    recipe = checked_recipe(registration.value)
    teacher_digest = recipe.teacher and recipe_digest(
        registry, recipe.teacher, dataset, below=(*below, name)
    )
    numbers = {field: getattr(recipe, field) for field in DIGESTED_FIELDS}
    halves = {"test": dataset.digest, "train": datasets.training_digest(dataset)}
    about = {"name": dataset.name, "shape": list(dataset.shape), "digests": halves}
    return digest(
        {
            "training": TRAINING_VERSION,
            "defense": name,
            "source": registration.source,
            "recipe": parameters_of(SimpleNamespace(name=f"the recipe of {name}", **numbers)),
            "inner": describe_inner_attack(registry, recipe.inner),
            "transfer": describe_inner_attack(registry, recipe.transfer),
            "watch": describe_inner_attack(registry, recipe.monitor),
            "teacher": teacher_digest,
            "dataset": {**about, "classes": len(dataset.classes)},
        }
    )


def describe_inner_attack(
    registry: Registry, inner: InnerAttack | FreeTraining | None
) -> dict[str, Any] | None:
    """An attack inside training as JSON values, for the recipe's digest."""
    if inner is None:
        return None
    if isinstance(inner, FreeTraining):
        return {"replays": inner.replays, "rate": inner.rate, "set": describe_set(inner.ball)}
    registration = resolve_inner_attack(registry, inner)
    return {
        "name": inner.attack,
        "attack": attack_digest(registration),
        "steps": registration.value.steps,
        "set": describe_set(inner.ball),
    }


def resolve_inner_attack(registry: Registry, inner: InnerAttack) -> Registration[Attack]:
    """The registered attack with the recipe's options in place of its own fields.

    Raises BenchError for an external or shared attack, or an option that is no field of the attack.
    """
    registration: Registration[Any] = registry.find("attack", inner.attack)
    if not Traits.has_steps(registration.value):
        kind = "shared" if is_shared(registration.value) else "external"
        method = "fit" if kind == "shared" else "run"
        raise BenchError(
            f"the attack {inner.attack} is {kind} (it implements `{method}`); inside training an "
            "attack with `start` and `step` is needed."
        )
    return dataclasses.replace(registration, value=_with_options(registration.value, inner))


def _with_options(attack: Any, inner: InnerAttack) -> Any:
    try:
        return dataclasses.replace(attack, **inner.options) if inner.options else attack
    except TypeError as error:
        raise BenchError(
            f"the attack {inner.attack} cannot take the options {dict(inner.options)}: {error}."
        ) from error
