"""Exports can be read back and state whether they are complete."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bench.core.cells import CellState
from bench.core.errors import BenchError, UnavailableError
from bench.core.outcomes import KeptImage, Verdict
from bench.results import export
from bench.results.json_report import json_report
from bench.store import Store
from tests.fixtures.small_store import World, first, outcomes, some


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Six examples; pgd and fgsm against d, the last example misclassified."""
    with Store.open(f"sqlite:///{tmp_path / 'bench.db'}") as store:
        made = World(store, n=6)
        made.threat("linf", "fgsm", "pgd")
        made.attack("fgsm", steps=1)
        made.attack("pgd")
        made.defense("d")
        made.clean("d", first(5, 6))
        made.evaluate("d", "fgsm", some(6, 0))
        yield made


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_for_each_defense_attack_and_example(
    world: World, tmp_path: Path
) -> None:
    verdict = np.array([1, 0, 2, 3, 4, 1])
    distance = np.array([0.1, 1 / 3, 0.5, 0.5, 0.0, 0.0])
    label = np.array([2, 0, -1, -1, -1, 1])
    world.evaluate("d", "pgd", some(6, 0, 5), verdict=verdict, distance=distance, label=label)
    made = export.write_outcomes(world.store, "linf", tmp_path / "out.csv")
    rows = table(made.path)
    assert (made.n, made.complete) == (12, True)
    assert [(r["defense"], r["attack"], r["example"]) for r in rows] == [
        ("d", attack, str(i)) for attack in ("fgsm", "pgd") for i in range(6)
    ]
    pgd = rows[6:]
    assert [r["verdict"] for r in pgd] == [Verdict(v).name.lower() for v in verdict]
    assert [float(r["distance"]) for r in pgd] == distance.tolist()
    assert [int(r["label"]) for r in pgd] == label.tolist()
    assert [r["step"] for r in pgd] == ["1", "-1", "-1", "-1", "-1", "1"]
    assert pgd[0].items() >= {"true_label": "0", "forwards": "3", "gradients": "2"}.items()


def test_robust_accuracy_follows_from_the_table_alone(world: World, tmp_path: Path) -> None:
    world.evaluate("d", "pgd", some(6, 1, 2))
    export.write_outcomes(world.store, "linf", tmp_path / "out.csv")
    right: dict[str, bool] = defaultdict(lambda: True)
    for row in table(tmp_path / "out.csv"):
        right[row["example"]] &= row["clean_right"] == "1" and row["verdict"] != "broken"
    assert sum(right.values()) == json_report(world.store)["ranking"][0]["robust"]["k"] == 2


def test_targets_are_rows_of_their_own(world: World, tmp_path: Path) -> None:
    world.threat("all", goal="targeted", rule="all")
    world.evaluate("d", "pgd", some(12, 3), threat="all")
    export.write_outcomes(world.store, "all", tmp_path / "out.csv")
    rows = table(tmp_path / "out.csv")
    assert [(r["example"], r["target"]) for r in rows[:4]] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert [r["verdict"] for r in rows[:4]] == ["robust", "robust", "robust", "broken"]


def test_a_table_of_an_unfinished_leaderboard_states_so(world: World, tmp_path: Path) -> None:
    world.plan(world.cell("d", "pgd"))
    made = export.write_outcomes(world.store, None, tmp_path / "out.csv")
    assert (made.n, made.complete) == (6, False)
    assert "incomplete: 1 planned" in made.sentence
    world.attack("bim")
    world.plan(world.cell("d", "bim"), CellState.NOT_APPLICABLE, "Not here.")
    assert "incomplete: 1 planned" in export.write_outcomes(world.store, None, made.path).sentence


def test_a_name_is_never_a_formula(world: World, tmp_path: Path) -> None:
    world.defense("=cmd()")
    world.clean("=cmd()", first(6, 6))
    world.evaluate("=cmd()", "fgsm", some(6, 0))
    export.write_outcomes(world.store, "linf", tmp_path / "out.csv")
    assert table(tmp_path / "out.csv")[0]["defense"] == "'=cmd()"


def test_exact_images_come_back_bit_for_bit_in_item_order(world: World, tmp_path: Path) -> None:
    adv = np.random.default_rng(0).random((6, 1, 2, 2), np.float32)
    cell = world.cell("d", "pgd")
    world.record(cell, outcomes(first(3, 6)), chunks=[[4, 1], [0, 5, 3, 2]], exact=adv)
    made = export.write_images(world.store, "linf", "d", "pgd", tmp_path / "adv.safetensors")
    read = load_file(made.path)
    assert (made.n, made.complete) == (6, True)
    assert read["adv"].dtype == np.float32
    assert read["index"].dtype == np.int64
    assert read["index"].tolist() == list(range(6))
    assert np.array_equal(read["adv"], adv)


def test_a_sample_is_stated_as_incomplete(world: World, tmp_path: Path) -> None:
    adv = np.full((1, 2, 2), 0.25, np.float32)
    kept = KeptImage(4, np.zeros((1, 2, 2), np.uint8), adv, 0, 0, 0.9, 1, 0.8)
    world.record(world.cell("d", "pgd"), outcomes(first(3, 6)), images=(kept,))
    made = export.write_images(world.store, None, "d", "pgd", tmp_path / "adv.safetensors")
    read = load_file(made.path)
    assert (made.n, made.complete) == (1, False)
    assert "1 of 6 images" in made.sentence
    assert "--keep-images all" in made.sentence
    assert (read["index"].tolist(), read["adv"].shape) == ([4], (1, 1, 2, 2))
    assert read["index"].dtype == np.int64


def test_missing_images_are_refused_with_a_remedy(world: World, tmp_path: Path) -> None:
    to = tmp_path / "adv.safetensors"
    with pytest.raises(BenchError, match="cells there: d/fgsm"):
        export.write_images(world.store, "linf", "d", "pgd", to)
    with pytest.raises(BenchError, match="--keep-images all"):
        export.write_images(world.store, "linf", "d", "fgsm", to)
    assert not to.exists()


def test_a_file_is_written_whole_or_not_at_all(world: World, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be written"):
        export.write_outcomes(world.store, "linf", tmp_path / "nowhere" / "out.csv")
    world.record(
        world.cell("d", "pgd"), outcomes(first(0, 6)), exact=np.zeros((6, 1, 2, 2), np.float32)
    )
    with pytest.raises(UnavailableError, match="cannot be written"):
        export.write_images(
            world.store, "linf", "d", "pgd", tmp_path / "nowhere" / "adv.safetensors"
        )
    old = tmp_path / "out.csv"
    old.write_text("old")
    with pytest.raises(BenchError):
        export.write_outcomes(world.store, "unknown", old)
    assert old.read_text() == "old"
    export.write_outcomes(world.store, "linf", old)
    assert sorted(p.name for p in tmp_path.glob("*out.csv*")) == ["out.csv"]
