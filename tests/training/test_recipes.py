"""Recipes: every number is part of the digest, and an inconsistent recipe is an error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import BenchError, UnavailableError
from bench.plugin import FreeTraining, Images, InnerAttack, Linf, Recipe
from bench.training import loop, recipes
from tests.fixtures.small_defenses import (
    DIGITS,
    EPS,
    INNER,
    defense,
    linear,
    one_thread,
    registry,
    small_recipe,
    train,
)

__all__ = ["one_thread"]


def digest_of(recipe: Recipe, **options: Any) -> str:
    """The recipe digest of a defense called student."""
    dataset = options.pop("dataset", DIGITS)
    known = registry(defense("student", recipe, **options), sources={"student": "source"})
    return recipes.recipe_digest(known, "student", dataset)


CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "batch": {"batch": 127},
    "rate": {"rate": 2e-2},
    "weight decay": {"weight_decay": 1e-4},
    "optimiser": {"optimiser": "sgd"},
    "schedule": {"schedule": "cosine"},
    "seed": {"seed": 1},
    "options": {"options": {"alpha": 0.5}},
    "no inner": {"inner": None},
    "another attack": {"inner": InnerAttack("one-step", INNER.ball)},
    "another step": {"inner": replace(INNER, options={"steps": 2, "rate": 0.5})},
    "another radius": {"inner": replace(INNER, ball=Linf(EPS / 2))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_number_of_a_recipe_is_in_its_digest(change: str) -> None:
    base = small_recipe(inner=INNER)
    assert digest_of(base) == digest_of(small_recipe(inner=INNER))
    assert digest_of(replace(base, **CHANGES[change])) != digest_of(base)


@dataclass(frozen=True)
class Patch(Linf):
    """An L-inf ball with a further parameter."""

    side: int = 1


@pytest.mark.parametrize(
    "inner",
    [InnerAttack("one-step", Patch(EPS)), FreeTraining(Patch(EPS), 2)],
    ids=["inner", "free"],
)
def test_every_parameter_of_the_set_trained_against_is_in_the_digest(
    inner: InnerAttack | FreeTraining,
) -> None:
    larger = replace(inner, ball=Patch(EPS, side=5))
    assert digest_of(small_recipe(inner=inner)) == digest_of(small_recipe(inner=replace(inner)))
    assert digest_of(small_recipe(inner=inner)) != digest_of(small_recipe(inner=larger))


def test_source_data_and_name_are_in_the_digest_and_texts_are_not() -> None:
    base = small_recipe()
    one = registry(defense("a", base), defense("b", base), sources={"a": "source", "b": "source"})
    other = registry(defense("a", base), sources={"a": "changed"})
    found = {
        recipes.recipe_digest(one, "a", DIGITS),
        recipes.recipe_digest(one, "b", DIGITS),
        recipes.recipe_digest(other, "a", DIGITS),
        recipes.recipe_digest(one, "a", replace(DIGITS, digest="changed")),
        recipes.recipe_digest(one, "a", replace(DIGITS, shape=(1, 4, 16))),
    }
    assert len(found) == 5
    assert digest_of(base, summary="a", cite="b") == digest_of(base)


def mislabelled(folder: Path | None) -> Images:
    """The digits, every training label increased by one."""
    images = DIGITS.load(folder)
    assert images.train is not None
    return replace(images, train=images.train._replace(labels=(images.train.labels + 1) % 10))


def test_another_training_half_has_other_weights(tmp_path: Path) -> None:
    known, own = registry(defense("student", small_recipe())), replace(DIGITS, train_digest="")
    wrong = loop.train_weights(known, "student", replace(own, load=mislabelled), folder=tmp_path)
    right = loop.train_weights(known, "student", own, folder=tmp_path)
    assert right != wrong
    assert right == loop.train_weights(known, "student", DIGITS, folder=tmp_path / "declared")


def test_a_declared_training_digest_needs_no_reading_of_the_data() -> None:
    def load(folder: Path | None) -> Images:
        raise OSError("read")

    unread = replace(DIGITS, load=load)
    assert digest_of(small_recipe(), dataset=unread) == digest_of(small_recipe())
    assert digest_of(small_recipe(), dataset=replace(DIGITS, train_digest="")) == digest_of(
        small_recipe()
    )
    assert digest_of(small_recipe(), dataset=replace(unread, train_digest="changed")) != digest_of(
        small_recipe()
    )
    with pytest.raises(UnavailableError, match="could not be read"):
        digest_of(small_recipe(), dataset=replace(unread, train_digest=""))


def test_options_equal_to_the_attacks_defaults_are_the_same_recipe() -> None:
    own = registry().attacks["pgd"].value
    same = replace(INNER, options={"steps": own.steps})
    assert digest_of(small_recipe(inner=same)) == digest_of(
        small_recipe(inner=replace(INNER, options={}))
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimiser": "adamw"}, "asks for the optimiser 'adamw'; known: adam, sgd"),
    ({"schedule": "step"}, "known: constant, cosine, cyclic, steps"),
    ({"epochs": 0}, "0 epochs of batches of 128"),
    ({"inner": InnerAttack("pdg", INNER.ball)}, "Did you mean 'pgd'"),
    ({"inner": replace(INNER, options={"stepz": 1})}, "cannot take the options .*stepz"),
    ({"options": {"model": object()}}, "the recipe of student.*which has no digest"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_an_inconsistent_recipe_is_an_error(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=sentence):
        train(tmp_path, small_recipe(**change))
    assert not list(tmp_path.iterdir())


def test_a_defense_without_a_recipe_is_not_trained(tmp_path: Path) -> None:
    known = registry(defense("student", build=lambda loader: linear(loader.shape, loader.classes)))
    with pytest.raises(BenchError, match="declares no recipe"):
        loop.train_weights(known, "student", DIGITS, folder=tmp_path)
