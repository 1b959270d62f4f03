"""Paths of exports: never over a database, and with a message where refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import UnavailableError
from bench.results import export
from bench.store import Store
from tests.fixtures.small_store import World, first, outcomes, some

Place = Callable[[Path], Path]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Six examples, and fgsm against d."""
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        made = World(store, n=6)
        made.threat("linf", "fgsm")
        made.attack("fgsm", steps=1)
        made.defense("d")
        made.evaluate("d", "fgsm", some(6, 0))
        yield made


def itself(folder: Path) -> Path:
    return folder / "bench.db"


def pointer(folder: Path) -> Path:
    (folder / "soft.csv").symlink_to(folder / "bench.db")
    return folder / "soft.csv"


def second_name(folder: Path) -> Path:
    os.link(folder / "bench.db", folder / "hard.csv")
    return folder / "hard.csv"


def another(folder: Path) -> Path:
    Store.open(f"sqlite:///{folder / 'other.db'}").close()
    return folder / "other.db"


@pytest.mark.parametrize("place", [itself, pointer, second_name, another])
def test_outcomes_do_not_overwrite_a_database(world: World, tmp_path: Path, place: Place) -> None:
    out = place(tmp_path)
    before = out.read_bytes()
    with pytest.raises(UnavailableError, match=rf"{out.name} is a database.*name another file"):
        export.write_outcomes(world.store, "linf", out)
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_images_do_not_overwrite_a_database(world: World, tmp_path: Path) -> None:
    adv = np.zeros((6, 1, 2, 2), np.float32)
    world.attack("pgd")
    world.record(world.cell("d", "pgd"), outcomes(first(3, 6)), exact=adv)
    with pytest.raises(UnavailableError, match=r"bench\.db is a database"):
        export.write_images(world.store, "linf", "d", "pgd", itself(tmp_path))


@pytest.mark.parametrize("out", [".", "/", "", "..", "folder", "pipe", "a" * 300, "file/x"])
def test_a_path_that_is_no_file_is_refused_with_a_message(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("no folder")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnavailableError, match=r"cannot be written .*name a file in a folder that"):
        export.write_outcomes(world.store, "linf", Path(out))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()


def test_an_earlier_export_is_replaced(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")
    assert export.write_outcomes(world.store, "linf", out).n == 6
    assert out.read_text().startswith("defense,attack")
