"""Databases for tests, created once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.store import Store
from tests.fixtures.small_store import World, first
from tests.results.small_results import FIVE, complete


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is created and migrated once, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "bench.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copy(empty, tmp_path / "bench.db")
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as opened:
        yield opened


@pytest.fixture
def world(store: Store) -> World:
    """One threat model, `linf`, that requires fgsm and pgd."""
    made = World(store)
    made.threat("linf", "fgsm", "pgd")
    made.attack("fgsm", steps=1)
    made.attack("pgd", steps=40)
    return made


@pytest.fixture
def five(store: Store) -> World:
    """One threat model that requires five attacks; defense `d` broken by each on 100 examples."""
    world = World(store)
    world.threat("linf", *FIVE)
    for name in FIVE:
        world.attack(name)
    complete(world, "d", first(100))
    return world
